//! How a line looks: one event is one line, whatever a peer put into its fields.

use std::fmt::{self, Write};
use std::time::SystemTime;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, JsonFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{self as subscriber_fmt, FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::output::Queue;

/// Text or JSON, with the name of the process in each line.
pub(super) enum Format {
    Text { process: String },
    Json { process: String },
}

impl Format {
    pub(super) fn new(process: &str, json: bool) -> Self {
        if json {
            let process = serde_json::Value::from(process).to_string();
            Self::Json { process }
        } else {
            let process = process.to_owned();
            Self::Text { process }
        }
    }

    /// Formats each event and puts the line into the queue, in one write.
    pub(super) fn layer<S>(self, queue: Queue, ansi: bool) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let layer = subscriber_fmt::layer()
            .with_writer(queue)
            .with_ansi(ansi)
            .log_internal_errors(false);
        match self {
            Self::Text { process } => layer.event_format(Text { process }).boxed(),
            Self::Json { process } => layer
                .fmt_fields(JsonFields::new())
                .event_format(Json {
                    process,
                    inner: format::format()
                        .json()
                        .flatten_event(true)
                        .with_timer(Timestamp),
                })
                .boxed(),
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
struct Timestamp;

impl FormatTime for Timestamp {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        write!(writer, "{now}")
    }
}

/// `2026-01-31T12:00:00.000Z  INFO worker 0 gen 3 target: span{field=1}: message field=2`
struct Text {
    process: String,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|s| s.from_root())
        {
            write!(text, "{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(text, "{{{fields}}}")?;
            }
            text.push_str(": ");
        }
        context.format_fields(Writer::new(&mut text), event)?;

        let metadata = event.metadata();
        Timestamp.format_time(&mut writer)?;
        writer.write_char(' ')?;
        write_level(&mut writer, *metadata.level())?;
        write!(writer, " {} {}: ", self.process, metadata.target())?;
        write_visibly(&mut writer, &text)?;
        writeln!(writer)
    }
}

fn write_level(writer: &mut Writer<'_>, level: Level) -> fmt::Result {
    if !writer.has_ansi_escapes() {
        return write!(writer, "{level:>5}");
    }
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    };
    write!(writer, "\x1b[{colour}m{level:>5}\x1b[0m")
}

/// A peer must not be able to forge a line, nor to steer the terminal.
fn write_visibly(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    let mut rest = text;
    while let Some(at) = rest.find(char::is_control) {
        let (plain, from_control) = rest.split_at(at);
        let mut characters = from_control.chars();
        writer.write_str(plain)?;
        if let Some(control) = characters.next() {
            write!(writer, "{}", control.escape_default())?;
        }
        rest = characters.as_str();
    }
    writer.write_str(rest)
}

/// The subscriber's JSON, with the process as its first field.
struct Json<F> {
    process: String,
    inner: F,
}

impl<S, N, F> FormatEvent<S, N> for Json<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner
            .format_event(context, Writer::new(&mut line), event)?;
        let fields = line.strip_prefix('{').ok_or(fmt::Error)?;
        write!(writer, "{{\"process\":{},{fields}", self.process)
    }
}
