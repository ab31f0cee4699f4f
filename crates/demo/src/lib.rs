//! The demo: chat servers to put behind the gateway, their page, and a
//! configuration that leads to them.
//!
//! It shows what wsgate does, and is no part of the gateway: nothing here may
//! be reached unless `wsgate demo` runs, and the servers listen on loopback
//! only. Clients are not trusted all the same: what they send is bounded, and
//! never ends anyone's tunnel but their own.

mod config;
mod message;
mod port;
mod room;
mod server;
mod session;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime;
use tokio::sync::oneshot;

pub use config::config;
pub use port::{check_free, free_port};

use room::Room;

/// Chat servers on loopback with one room across them, on a thread and a
/// runtime of their own.
///
/// Dropping it ends them: their sockets close, without a Close frame, before
/// the drop returns.
#[derive(Debug)]
pub struct ChatServers {
    addresses: Vec<(String, SocketAddr)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts one chat server for each name, each on a free port of 127.0.0.1.
///
/// They accept connections when this returns.
///
/// # Errors
/// When an address cannot be bound, or the runtime or its thread not started.
pub fn start(names: &[&str]) -> io::Result<ChatServers> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (addresses, listeners) = bind(names)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new()
        .name("chat".to_owned())
        .spawn(move || runtime.block_on(run(listeners, stopped)))?;
    Ok(ChatServers {
        addresses,
        stop: Some(stop),
        thread: Some(thread),
    })
}

impl ChatServers {
    /// The servers' names and addresses, in the order of the names given to
    /// [`start`].
    pub fn addresses(&self) -> &[(String, SocketAddr)] {
        &self.addresses
    }
}

impl Drop for ChatServers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic on that thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

type Named<T> = Vec<(String, T)>;

fn bind(names: &[&str]) -> io::Result<(Named<SocketAddr>, Named<TcpListener>)> {
    let mut addresses = Vec::new();
    let mut listeners = Vec::new();
    for &name in names {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        addresses.push((name.to_owned(), listener.local_addr()?));
        listeners.push((name.to_owned(), listener));
    }
    Ok((addresses, listeners))
}

/// Serves until the other end of `stopped` is dropped. The tasks end with the
/// runtime.
async fn run(listeners: Named<TcpListener>, stopped: oneshot::Receiver<()>) {
    let room = Arc::new(Room::default());
    for (name, listener) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                tokio::spawn(server::serve(listener, name.into(), Arc::clone(&room)));
            }
            Err(error) => tracing::error!(server = name, %error, "chat server not started"),
        }
    }
    // An error is what a dropped sender looks like.
    let _ = stopped.await;
}
