//! wsgate's own answers: a status, and a small text that names the reason and the request.
//!
//! The text tells a client nothing about servers; what an operator needs besides stands in
//! the log under the same request id.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Response, StatusCode};

use crate::body::Body;
use crate::dial::DialError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request is not forwarded, or not answered by a server.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// For the client.
    pub(crate) reason: &'static str,
    /// For the log.
    pub(crate) detail: Option<String>,
    /// No other server can do better.
    pub(crate) everywhere: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, reason: &'static str) -> Self {
        Self {
            status,
            reason,
            detail: None,
            everywhere: false,
            headers: Vec::new(),
        }
    }

    /// 503, and when to come back: in a second another worker or server may have room.
    pub(crate) fn busy(reason: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
            .with_header(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// 426 with the version that is spoken here (RFC 6455 section 4.4, RFC 9110 section 15.5.22).
    pub(crate) fn wrong_version() -> Self {
        Self::new(
            StatusCode::UPGRADE_REQUIRED,
            "the WebSocket version spoken here is 13",
        )
        .with_header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
        .with_header(UPGRADE, HeaderValue::from_static("websocket"))
        .with_header(CONNECTION, HeaderValue::from_static("Upgrade"))
    }

    /// 502.
    pub(crate) fn bad_gateway(reason: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, reason).because(detail)
    }

    /// 504.
    pub(crate) fn late(limit: Duration) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the server did not answer in time",
        )
        .because(format_args!("no answer within {limit:?}"))
    }

    pub(crate) fn because(mut self, detail: impl ToString) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The answer for the client.
    pub(crate) fn answer(&self, id: &str) -> Response<Body> {
        let mut response = Response::new(Body::own(self.text(id)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if let Ok(id) = HeaderValue::try_from(id) {
            headers.insert(REQUEST_ID, id);
        }
        headers.extend(self.headers.iter().cloned());
        response
    }

    /// The answer as bytes, for where no HTTP state is left that could write it. The
    /// connection ends with it.
    pub(crate) fn bytes(&self, id: &str) -> Vec<u8> {
        let Self { status, .. } = self;
        let text = self.text(id);
        let length = text.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nX-Request-Id: {id}\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        [head.into_bytes(), text.to_vec()].concat()
    }

    fn text(&self, id: &str) -> Bytes {
        format!("{}: {}\nrequest {id}\n", self.status, self.reason).into()
    }
}

/// An error and what caused it: hyper's own text leaves the cause out.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let first = error.to_string();
    std::iter::successors(error.source(), |error| error.source())
        .fold(first, |text, cause| format!("{text}: {cause}"))
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Self {
        let refusal = match &error {
            DialError::TimedOut(_) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "the server did not accept a connection in time",
            ),
            DialError::Short(_) | DialError::NoPort { .. } => {
                Self::busy("the gateway has no resources for a connection")
            }
            DialError::NotOurs(_) | DialError::Unfit { .. } => {
                Self::busy("the gateway has no address to connect from")
            }
            DialError::Failed(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "no connection to the server")
            }
        };
        refusal.because(error)
    }
}
