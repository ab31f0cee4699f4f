//! One request, from its head to its answer.
//!
//! Every request gets exactly one answer: a server's, or wsgate's own with the reason.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{CONNECTION, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::Figure;
use crate::access::Access;
use crate::answer::Refusal;
use crate::balance::{Attempts, Pick};
use crate::body::Body;
use crate::connection::Front;
use crate::dial::dial;
use crate::gateway::Gateway;
use crate::socket::Socket;
use crate::{handshake, http as plain, target};

/// Answers a request. Cancelled by being dropped, when the client goes away.
pub(crate) async fn exchange(front: Arc<Front>, request: Request<Incoming>) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    // hyper's own way to upgrade, which is not taken.
    head.extensions.remove::<OnUpgrade>();
    let id = front.gateway.next_id();
    let method = head.method.clone();
    let mut access = Access::new(id, front.peer, Arc::clone(&front.listener), method);
    let mut response = match forward(&front, &mut access, head, body).await {
        Ok(response) => response,
        Err(refusal) => refuse(&front.gateway, &access, &refusal),
    };
    access.answered(response.status().as_u16());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        access.became_a_tunnel();
    } else if front.gateway.retired.is_cancelled() {
        response
            .headers_mut()
            .append(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| body.with(access))
}

async fn forward(
    front: &Front,
    access: &mut Access,
    mut head: Parts,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let gateway = &front.gateway;
    let upgrade = handshake::is_upgrade(&head);
    if !upgrade {
        gateway.ledger.add(Figure::Requests, 1);
    }
    access.path = head.uri.path().into();
    let target = target::vet(&mut head)?;
    access.host = target.host;
    let table = gateway.table();
    let Some(route) = table.plan.find(&access.host, &target.path) else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no route for this host and path",
        ));
    };
    access.routed(
        &table.plan.route(route).shared.name,
        &table.plan.upstream_of(route).name,
    );
    let attempts = Attempts::new(table, route);
    if upgrade {
        front.upgrading.store(true, Ordering::Relaxed);
        let answer = handshake::upgrade(front, access, attempts, head, body).await;
        let opened = answer
            .as_ref()
            .is_ok_and(|answer| answer.status() == StatusCode::SWITCHING_PROTOCOLS);
        front.upgrading.store(opened, Ordering::Relaxed);
        answer
    } else {
        plain::forward(front, access, attempts, head, body).await
    }
}

/// Connects to a server that was picked.
pub(crate) async fn connect(gateway: &Gateway, pick: &Pick) -> Result<Socket, Refusal> {
    let server = pick.server();
    let limit = pick.upstream().connect_timeout;
    let dialled = dial(&server.address, &server.sources, limit).await;
    dialled.map_err(|error| {
        if error.is_the_servers() {
            gateway
                .ledger
                .add(Figure::ServerConnectFailures(server.shared.number), 1);
        }
        let mut servers = pick.upstream().servers.iter();
        let elsewhere = servers.any(|other| error.may_differ_at(&other.address));
        let mut refusal = Refusal::from(error);
        refusal.everywhere = !elsewhere;
        refusal
    })
}

fn refuse(gateway: &Gateway, access: &Access, refusal: &Refusal) -> Response<Body> {
    gateway
        .ledger
        .add(Figure::Error(refusal.status.as_u16()), 1);
    access.refused(refusal);
    refusal.answer(&access.id)
}
