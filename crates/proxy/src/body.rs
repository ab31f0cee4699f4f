//! Bodies of answers: a server's, streamed as it comes, or wsgate's own.
//!
//! A server's body that breaks off is an error here, so that the client's connection is cut: an
//! answer that is not whole must not look as if it were.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use crate::access::Access;

/// The body of an answer. Its access line is written when it has ended.
#[derive(Debug)]
pub(crate) struct Body {
    source: Source,
    access: Option<Access>,
}

#[derive(Debug)]
enum Source {
    Own(Full<Bytes>),
    Server(Incoming),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::own(Bytes::new())
    }

    pub(crate) fn own(text: Bytes) -> Self {
        Self::from(Source::Own(Full::new(text)))
    }

    pub(crate) fn of_server(incoming: Incoming) -> Self {
        Self::from(Source::Server(incoming))
    }

    /// With the access line to write at the end.
    pub(crate) fn with(mut self, mut access: Access) -> Self {
        access.whole = self.is_end_stream();
        self.access = Some(access);
        self
    }
}

impl From<Source> for Body {
    fn from(source: Source) -> Self {
        Self {
            source,
            access: None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(match &mut self.source {
            Source::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Source::Server(body) => Pin::new(body).poll_frame(cx),
        });
        let whole = self.is_end_stream();
        if let Some(access) = &mut self.access {
            match &frame {
                Some(Err(error)) => access.broke_off(error),
                None => access.whole = true,
                Some(Ok(_)) => access.whole |= whole,
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Server(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Server(body) => body.size_hint(),
        }
    }
}
