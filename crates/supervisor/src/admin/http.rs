//! Connections and paths of the admin socket and of `[admin] http`.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request as HttpRequest, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use wsgate_protocol::admin::{
    ApiError, CloseRequest, ErrorBody, GatewayState, ReloadOutcome, ReloadRequest,
    ServerStateRequest, StopRequest, UNRESPONSIVE_HEADER,
};

use super::{Refusal, close, events as news, metrics, status, tunnels};
use crate::admin::Snapshot;
use crate::event::{Event, Events, Request};
use crate::reload::HELD_HELP;

/// Longest body of a request.
const BODY: usize = 64 * 1024;

/// From accept to a complete request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed accept: without descriptors the next one fails as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;
type Answer = Result<Response<Body>, Refusal>;

/// Serves the admin socket for as long as the supervisor lives.
pub(crate) async fn serve(listener: UnixListener, events: Events) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().ok();
                (stream, peer)
            }
            Err(error) => {
                tracing::warn!(%error, "admin socket: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let events = events.clone();
        let service = service_fn(move |request| {
            let events = events.clone();
            async move { Ok::<_, Infallible>(answer(admin(request, &events, peer).await)) }
        });
        tokio::spawn(serve_connection(TokioIo::new(stream), service));
    }
}

/// Serves `[admin] http` until it is aborted.
pub(crate) async fn serve_http(listener: TcpListener, events: Events) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "[admin] http: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let events = events.clone();
        let service = service_fn(move |request| {
            let events = events.clone();
            async move { Ok::<_, Infallible>(answer(public(&request, &events).await)) }
        });
        tokio::spawn(serve_connection(TokioIo::new(stream), service));
    }
}

async fn serve_connection<I, S>(io: I, service: S)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(io, service).await {
        tracing::debug!(%error, "admin connection");
    }
}

async fn admin(request: HttpRequest<Incoming>, events: &Events, peer: Option<UCred>) -> Answer {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    match path.as_str() {
        "/v1/status" => {
            only(&method, &Method::GET)?;
            json(
                StatusCode::OK,
                &status::complete(ask(events, Request::Snapshot).await?).await,
            )
        }
        "/v1/tunnels" => {
            only(&method, &Method::GET)?;
            let filter = tunnels::filter(request.uri().query())?;
            list(ask(events, Request::Snapshot).await?, filter).await
        }
        "/v1/reload" => {
            only(&method, &Method::POST)?;
            reload(body(request).await?.unwrap_or_default(), events, peer).await
        }
        "/v1/events" => {
            only(&method, &Method::GET)?;
            let receiver = ask(events, Request::Events).await?;
            let response = Response::builder()
                .header(header::CONTENT_TYPE, news::CONTENT_TYPE)
                .header(header::CACHE_CONTROL, "no-store");
            response.body(news::body(receiver)).map_err(internal)
        }
        "/v1/stop" => {
            only(&method, &Method::POST)?;
            let StopRequest { now } = body(request).await?.unwrap_or_default();
            log_change("stop", peer);
            json(
                StatusCode::ACCEPTED,
                &ask(events, |reply| Request::Stop { now, reply }).await?,
            )
        }
        _ => by_name(request, events, peer, &path).await,
    }
}

/// Paths that name what they are about.
async fn by_name(
    request: HttpRequest<Incoming>,
    events: &Events,
    peer: Option<UCred>,
    path: &str,
) -> Answer {
    if let Some((upstream, server)) = server_path(path) {
        only(request.method(), &Method::PUT)?;
        return change_server(request, events, peer, upstream, server).await;
    }
    if let Some(id) = tunnel_path(path) {
        only(request.method(), &Method::DELETE)?;
        return close_tunnel(request, events, peer, &id).await;
    }
    Err(Refusal::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is no {path}"),
        "GET /v1/status, GET /v1/tunnels, GET /v1/events, DELETE /v1/tunnels/{id}, POST /v1/reload, POST /v1/stop, PUT /v1/upstreams/{u}/servers/{addr}",
    ))
}

/// What anybody may read: it names no client and changes nothing.
async fn public(request: &HttpRequest<Incoming>, events: &Events) -> Answer {
    let path = request.uri().path();
    if request.method() != Method::HEAD {
        only(request.method(), &Method::GET)?;
    }
    match path {
        "/metrics" => {
            let text = metrics::render(&ask(events, Request::Snapshot).await?);
            text_answer(StatusCode::OK, metrics::CONTENT_TYPE, text)
        }
        // Whoever answers is alive.
        "/healthz" => text_answer(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => {
            let state = ask(events, Request::Snapshot).await?.status.state;
            match state {
                GatewayState::Running => {
                    text_answer(StatusCode::OK, "text/plain", "ready\n".to_owned())
                }
                GatewayState::Starting => unready("starting\n"),
                GatewayState::Stopping => unready("stopping\n"),
            }
        }
        _ => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no {path}"),
            "/metrics, /healthz, /readyz; everything else is on the admin socket",
        )),
    }
}

fn unready(text: &str) -> Answer {
    text_answer(
        StatusCode::SERVICE_UNAVAILABLE,
        "text/plain",
        text.to_owned(),
    )
}

async fn list(snapshot: Snapshot, filter: wsgate_protocol::admin::TunnelFilter) -> Answer {
    let list = tunnels::open(snapshot.links, filter).await;
    let mut response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    if !list.unresponsive.is_empty() {
        let pids = tunnels::joined(&list.unresponsive);
        response = response.header(UNRESPONSIVE_HEADER, pids);
    }
    response.body(list.body).map_err(internal)
}

async fn reload(request: ReloadRequest, events: &Events, peer: Option<UCred>) -> Answer {
    match request {
        ReloadRequest {
            dry_run: true,
            force: true,
        } => Err(invalid(
            "dry_run and force exclude each other".to_owned(),
            "a dry run is never held back: leave force out",
        )),
        ReloadRequest { dry_run: true, .. } => reloaded(ask(events, Request::DryRun).await?),
        ReloadRequest { force, .. } => {
            log_change(if force { "forced reload" } else { "reload" }, peer);
            reloaded(ask(events, |reply| Request::Reload { force, reply }).await?)
        }
    }
}

fn reloaded(outcome: ReloadOutcome) -> Answer {
    match outcome {
        ReloadOutcome::Held(held) => Err(Refusal {
            details: held.reasons().into(),
            held: Some(Box::new(held.clone())),
            ..Refusal::new(
                StatusCode::CONFLICT,
                "reload_held",
                held.message(),
                HELD_HELP,
            )
        }),
        ReloadOutcome::Failed { message, errors } if errors.is_empty() => Err(Refusal::new(
            StatusCode::CONFLICT,
            "reload_failed",
            message,
            "nothing has changed; `wsctl status` and the log say more",
        )),
        ReloadOutcome::Failed { message, errors } => Err(Refusal {
            details: errors.into(),
            ..Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "config_invalid",
                message,
                "the active generation goes on; mend the file, `wsgate check` tells whether it is right",
            )
        }),
        outcome => json(StatusCode::OK, &outcome),
    }
}

async fn change_server(
    request: HttpRequest<Incoming>,
    events: &Events,
    peer: Option<UCred>,
    upstream: String,
    server: String,
) -> Answer {
    let change: ServerStateRequest = body(request).await?.ok_or_else(|| {
        invalid(
            "the body is empty".to_owned(),
            r#"send {"state": "drain"}, "ready" or "maint""#,
        )
    })?;
    log_change("server state", peer);
    let changed = ask(events, |reply| Request::Server {
        upstream,
        server,
        change,
        reply,
    })
    .await?;
    json(StatusCode::OK, &changed?)
}

async fn close_tunnel(
    request: HttpRequest<Incoming>,
    events: &Events,
    peer: Option<UCred>,
    id: &str,
) -> Answer {
    let order = close::order(body::<CloseRequest>(request).await?.unwrap_or_default())?;
    json(
        StatusCode::OK,
        &close::close(events, id, order, peer).await?,
    )
}

/// Who asked for a change goes to the log.
fn log_change(what: &str, peer: Option<UCred>) {
    let (pid, uid) = (
        peer.and_then(|peer| peer.pid()),
        peer.map(|peer| peer.uid()),
    );
    tracing::info!(pid, uid, "admin: {what}");
}

/// Splits `/v1/upstreams/{u}/servers/{addr}`; both names are percent-encoded.
fn server_path(path: &str) -> Option<(String, String)> {
    let (upstream, server) = path
        .strip_prefix("/v1/upstreams/")?
        .split_once("/servers/")?;
    if upstream.contains('/') || server.contains('/') {
        return None;
    }
    Some((decoded(upstream)?, decoded(server)?))
}

/// The id in `/v1/tunnels/{id}`.
fn tunnel_path(path: &str) -> Option<String> {
    let id = path.strip_prefix("/v1/tunnels/")?;
    if id.is_empty() || id.contains('/') {
        return None;
    }
    decoded(id)
}

/// A segment of a path.
fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    Some(text.into_owned())
}

/// Asks the supervisor's loop.
pub(super) async fn ask<T>(
    events: &Events,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    // A supervisor that ends answers nobody, which the next line finds out.
    drop(events.send(Event::Admin(request(reply))));
    answer.await.map_err(|_| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the supervisor ends",
            "start wsgate again",
        )
    })
}

fn only(method: &Method, allowed: &Method) -> Result<(), Refusal> {
    if method == allowed {
        return Ok(());
    }
    let message = format!("{method} is not for this path: it takes {allowed}");
    let help = "docs/admin-api.md lists the calls";
    Err(Refusal {
        // RFC 9110 section 15.5.6 wants it.
        header: Some(("allow", allowed.as_str().into())),
        ..Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
            help,
        )
    })
}

/// The JSON of a request's body; `None` if it is empty.
async fn body<T: DeserializeOwned>(request: HttpRequest<Incoming>) -> Result<Option<T>, Refusal> {
    let help = "docs/admin-api.md shows each body";
    let read = Limited::new(request.into_body(), BODY).collect().await;
    let bytes = read
        .map_err(|error| invalid(format!("the body cannot be read: {error}"), help))?
        .to_bytes();
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| invalid(format!("the body is not what it should be: {error}"), help))
}

pub(crate) fn invalid(message: String, help: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", message, help)
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        error.to_string(),
        "please report it",
    )
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut text = serde_json::to_string(value).map_err(internal)?;
    text.push('\n');
    text_answer(status, "application/json", text)
}

fn text_answer(status: StatusCode, content_type: &str, text: String) -> Answer {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(
            Full::new(Bytes::from(text))
                .map_err(|never| match never {})
                .boxed(),
        )
        .map_err(internal)
}

fn answer(answer: Answer) -> Response<Body> {
    let refusal = match answer {
        Ok(response) => return response,
        Err(refusal) => refusal,
    };
    let Refusal {
        status,
        code,
        message,
        help,
        details,
        held,
        header,
    } = refusal;
    let error = ApiError {
        code: code.to_owned(),
        message,
        help: help.to_owned(),
        details: details.into_vec(),
        held,
    };
    let mut response = json(status, &ErrorBody { error }).unwrap_or_else(|_| {
        let mut response = Response::new(
            Full::new(Bytes::new())
                .map_err(|never| match never {})
                .boxed(),
        );
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    });
    if let Some((name, value)) = header
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::{server_path, tunnel_path};

    #[test]
    fn names_in_a_path_are_percent_decoded_after_the_split() {
        let found = server_path("/v1/upstreams/chat/servers/unix%3A%2Frun%2Fx.sock");
        assert_eq!(
            found,
            Some(("chat".to_owned(), "unix:/run/x.sock".to_owned()))
        );
        assert_eq!(server_path("/v1/upstreams/chat/servers/a/b"), None);
        assert_eq!(server_path("/v1/upstreams/chat"), None);
        assert_eq!(tunnel_path("/v1/tunnels/a%2Db"), Some("a-b".to_owned()));
        for none in [
            "/v1/tunnels",
            "/v1/tunnels/",
            "/v1/tunnels/%ff",
            "/v1/tunnels/a/b",
        ] {
            assert_eq!(tunnel_path(none), None, "{none}");
        }
    }
}
