//! An admin server that gives the answers that a test wants, and remembers what it was asked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// As `GET /v1/status`.
    pub(super) call: String,
    pub(super) body: String,
}

/// What to do about it.
pub(super) enum Reply {
    /// A whole answer.
    Json(u16, String),
    /// 200, with headers, in chunks.
    Chunks(&'static str, Vec<String>),
    /// 200, in chunks, and then the connection's end instead of the body's.
    CutShort(Vec<String>),
    /// Nothing, for ever.
    Silence,
    /// The connection's end at once.
    HangUp,
    /// The connection's end at once, and the socket's.
    Gone,
}

type Answer = dyn FnMut(&Seen) -> Reply + Send;

/// Serves until it is dropped, or until a `Gone`.
pub(super) struct Fake {
    directory: TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) fn start(answer: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::default();
        let task = tokio::spawn(serve(listener, path, Arc::clone(&seen), Box::new(answer)));
        Self {
            directory,
            seen,
            task,
        }
    }

    /// One that gives the same answer to whatever it is asked.
    pub(super) fn always(status: u16, json: &str) -> Self {
        let json = json.to_owned();
        Self::start(move |_| Reply::Json(status, json.clone()))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: UnixListener,
    path: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    mut answer: Box<Answer>,
) {
    let mut silent = Vec::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let Some(request) = read(&mut stream).await else {
            continue;
        };
        let reply = answer(&request);
        seen.lock().unwrap().push(request);
        match reply {
            Reply::Json(status, json) => {
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n",
                    json.len()
                );
                write(&mut stream, &[head, json]).await;
            }
            Reply::Chunks(headers, chunks) => {
                write(&mut stream, &chunked(headers, chunks)).await;
                write(&mut stream, &["0\r\n\r\n".to_owned()]).await;
            }
            Reply::CutShort(chunks) => write(&mut stream, &chunked("", chunks)).await,
            Reply::Silence => silent.push(stream),
            Reply::HangUp => {}
            Reply::Gone => return remove(&path),
        }
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn chunked(headers: &str, chunks: Vec<String>) -> Vec<String> {
    let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{headers}\r\n");
    let chunks = chunks
        .into_iter()
        .map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    std::iter::once(head).chain(chunks).collect()
}

async fn write(stream: &mut UnixStream, pieces: &[String]) {
    for piece in pieces {
        // A client that has left is the client's affair.
        let _ = stream.write_all(piece.as_bytes()).await;
    }
}

/// A request whole; `None` if the connection ends before.
async fn read(stream: &mut UnixStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            if body.len() == length {
                return Some(Seen {
                    call: head.split(" HTTP/1.1").next()?.to_owned(),
                    body: body.to_owned(),
                });
            }
        }
    }
}
