//! The access log: a line for every request, and two for every tunnel.
//!
//! Queries are never in it: they carry tokens.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method};
use tracing::{info, warn};

use crate::Record;
use crate::answer::{Refusal, causes};
use crate::balance::Pick;
use crate::socket::Peer;
use crate::tunnel::Ending;

/// One request, as far as it has come. Written when dropped, unless a tunnel came of it.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) id: Box<str>,
    pub(crate) client: Peer,
    pub(crate) listener: Arc<str>,
    pub(crate) method: Method,
    pub(crate) host: Box<str>,
    pub(crate) path: Box<str>,
    /// The answer was sent to its end.
    pub(crate) whole: bool,
    begun: Instant,
    status: Option<u16>,
    route: Option<Arc<str>>,
    upstream: Option<Arc<str>>,
    server: Option<Arc<str>>,
    note: Option<&'static str>,
    silent: bool,
    /// A failed try has been told.
    warned: bool,
}

impl Access {
    pub(crate) fn new(id: Box<str>, client: Peer, listener: Arc<str>, method: Method) -> Self {
        Self {
            id,
            client,
            listener,
            method,
            host: Box::default(),
            path: Box::default(),
            whole: false,
            begun: Instant::now(),
            status: None,
            route: None,
            upstream: None,
            server: None,
            note: None,
            silent: false,
            warned: false,
        }
    }

    pub(crate) fn routed(&mut self, route: &Arc<str>, upstream: &Arc<str>) {
        self.route = Some(Arc::clone(route));
        self.upstream = Some(Arc::clone(upstream));
    }

    pub(crate) fn picked(&mut self, pick: &Pick) {
        self.server = Some(Arc::clone(&pick.server().shared.name));
    }

    /// A `Host` for a request that came without.
    pub(crate) fn host_for_server(&self) -> HeaderValue {
        let upstream = self.upstream.as_deref().unwrap_or_default();
        HeaderValue::try_from(upstream).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    pub(crate) fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// A tunnel came of it, which has lines of its own.
    pub(crate) fn became_a_tunnel(&mut self) {
        self.silent = true;
    }

    /// The server's answer broke off.
    pub(crate) fn broke_off(&mut self, error: &hyper::Error) {
        self.note = Some("the server's answer broke off");
        warn!(
            target: "wsgate::proxy",
            id = &*self.id,
            server = self.server.as_deref(),
            detail = causes(error),
            "a server's answer broke off"
        );
    }

    /// A try at a server failed, and another may follow.
    pub(crate) fn failed(&mut self, refusal: &Refusal) {
        self.warned = true;
        warn!(
            target: "wsgate::proxy",
            id = &*self.id,
            upstream = self.upstream.as_deref(),
            server = self.server.as_deref(),
            detail = refusal.detail.as_deref(),
            "{}", refusal.reason
        );
    }

    /// wsgate answers by itself. What a failed try has told already is no second warning.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let status = refusal.status.as_u16();
        let (id, client, detail) = (&*self.id, self.client, refusal.detail.as_deref());
        if refusal.status.is_server_error() && !self.warned {
            let server = self.server.as_deref();
            warn!(target: "wsgate::proxy", id, status, %client, server, detail, "{}", refusal.reason);
        } else {
            info!(target: "wsgate::proxy", id, status, %client, detail, "{}", refusal.reason);
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        if self.silent {
            return;
        }
        let unwhole = (!self.whole).then_some("the client went away");
        let note = self.note.or(unwhole);
        info!(
            target: "wsgate::access",
            id = &*self.id,
            client = %self.client,
            listener = &*self.listener,
            method = self.method.as_str(),
            host = &*self.host,
            path = &*self.path,
            status = self.status,
            route = self.route.as_deref(),
            upstream = self.upstream.as_deref(),
            server = self.server.as_deref(),
            duration_ms = self.begun.elapsed().as_millis() as u64,
            note,
            "request"
        );
    }
}

/// The line for a tunnel that opens.
pub(crate) fn opened(record: &Record) {
    info!(
        target: "wsgate::access",
        id = &*record.id,
        client = %record.client,
        listener = &*record.listener,
        host = &*record.host,
        path = &*record.path,
        route = &*record.route.name,
        upstream = &*record.server.upstream,
        server = &*record.server.name,
        subprotocol = record.subprotocol.as_deref(),
        "tunnel opened"
    );
}

/// The line for a tunnel that has ended.
pub(crate) fn ended(record: &Record, ending: &Ending) {
    let (bytes_from_client, messages_from_client) = record.from_client();
    let (bytes_from_server, messages_from_server) = record.from_server();
    info!(
        target: "wsgate::access",
        id = &*record.id,
        client = %record.client,
        route = &*record.route.name,
        server = &*record.server.name,
        duration_ms = record.opened.elapsed().as_millis() as u64,
        bytes_from_client,
        bytes_from_server,
        messages_from_client,
        messages_from_server,
        handovers = (record.handovers > 0).then_some(record.handovers),
        cause = ending.cause.name(),
        round_trip_us = record.round_trip().map(|it| it.as_micros() as u64),
        client_code = ending.client_code,
        server_code = ending.server_code,
        note = ending.note,
        "tunnel ended"
    );
}
