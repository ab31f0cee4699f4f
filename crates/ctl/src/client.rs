//! HTTP/1.1 over the admin socket, one connection per call.
//!
//! A client may have a patience: then no wait for an answer is longer than that.
//! Nothing is tried again here but a connect that met a full backlog: whether a
//! call may be repeated is the command's to know.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use wsgate_protocol::admin::ErrorBody;

use crate::error::CtlError;

/// All but the unreserved characters of RFC 3986 section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Between two attempts while the supervisor's backlog is full.
const BACKLOG_RETRY: Duration = Duration::from_millis(20);

/// How long a supervisor that does not answer is asked who it is: only the kernel has to answer.
const ASK_WHO: Duration = Duration::from_millis(200);

/// The way to one supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    patience: Option<Duration>,
}

/// An answer as it came, and what it says.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) json: Bytes,
    pub(crate) value: T,
}

impl Client {
    /// With a patience, a supervisor that has not answered for so long is an error.
    pub(crate) fn new(socket: &Path, patience: Option<Duration>) -> Self {
        Self {
            socket: socket.to_owned(),
            patience,
        }
    }

    /// GET, and the answer's JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, CtlError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// GET, and the answer's body still to be read. That may take its time.
    pub(crate) async fn stream(&self, path: &str) -> Result<Response<Incoming>, CtlError> {
        self.patiently(self.send(Method::GET, path, Bytes::new()))
            .await
    }

    /// POST without a body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Answer<T>, CtlError> {
        self.call(Method::POST, path, Bytes::new()).await
    }

    /// A request with a JSON body.
    pub(crate) async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>, CtlError> {
        let body = serde_json::to_vec(body).map_err(|source| CtlError::NotUnderstood {
            path: path.to_owned(),
            source,
        })?;
        self.call(method, path, body.into()).await
    }

    /// The pid of the process that made the socket (SO_PEERCRED in unix(7)), as
    /// seen from here; `None` if it is not visible from here.
    pub(crate) async fn peer_pid(&self) -> Result<Option<u32>, CtlError> {
        let stream = self.connect().await?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        Ok(pid
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|&pid| pid != 0))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer<T>, CtlError> {
        self.patiently(async {
            let response = self.send(method, path, body).await?;
            read(path, response).await
        })
        .await
    }

    async fn patiently<T>(
        &self,
        answer: impl Future<Output = Result<T, CtlError>>,
    ) -> Result<T, CtlError> {
        let Some(patience) = self.patience else {
            return answer.await;
        };
        if let Ok(answer) = tokio::time::timeout(patience, answer).await {
            return answer;
        }
        let peer = tokio::time::timeout(ASK_WHO, self.peer_pid()).await;
        Err(CtlError::NoAnswer {
            socket: self.socket.clone(),
            patience,
            pid: peer.ok().and_then(Result::ok).flatten(),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CtlError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its error reaches the caller by the answer or its body.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refusal(response).await?)
        }
    }

    async fn connect(&self) -> Result<UnixStream, CtlError> {
        loop {
            let source = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(source) => source,
            };
            let socket = self.socket.clone();
            match source.kind() {
                // EAGAIN: a Unix socket's connect does not wait for room (connect(2)).
                io::ErrorKind::WouldBlock => tokio::time::sleep(BACKLOG_RETRY).await,
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    return Err(CtlError::NoSupervisor { socket, source });
                }
                io::ErrorKind::PermissionDenied => {
                    return Err(CtlError::PermissionDenied { socket });
                }
                _ => return Err(CtlError::Connect { socket, source }),
            }
        }
    }
}

/// A name or an address as one segment of a path, or a value of a query.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

async fn read<T: DeserializeOwned>(
    path: &str,
    response: Response<Incoming>,
) -> Result<Answer<T>, CtlError> {
    let json = response.into_body().collect().await?.to_bytes();
    match serde_json::from_slice(&json) {
        Ok(value) => Ok(Answer { json, value }),
        Err(source) => Err(CtlError::NotUnderstood {
            path: path.to_owned(),
            source,
        }),
    }
}

async fn refusal(response: Response<Incoming>) -> Result<CtlError, CtlError> {
    let status = response.status();
    let json = response.into_body().collect().await?.to_bytes().to_vec();
    Ok(match serde_json::from_slice::<ErrorBody>(&json) {
        Ok(ErrorBody { error }) => CtlError::Refused {
            error: Box::new(error),
            json,
        },
        Err(_) => CtlError::NoErrorBody { status, body: json },
    })
}
