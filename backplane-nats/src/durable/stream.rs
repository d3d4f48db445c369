//! The stream of a prefix: found or made by whoever comes first, and where a link starts to read it.

use std::error::Error as StdError;
use std::time::Duration;

use async_nats::jetstream::context::{
    CreateStreamErrorKind, GetStreamErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use backplane_core::{Error, ErrorKind, Position, Result};

use super::position::{Standing, nanoseconds};
use crate::config::{Durable, Storage};

/// How long the server remembers identities of messages. Every one costs it memory, so this is far below its own
/// default of 2 min; a publish is sent again within half of it.
const DUPLICATES: Duration = Duration::from_secs(20);

/// Where a link starts.
pub(super) struct Start {
    /// The first sequence that it reads.
    pub(super) sequence: u64,
    /// Whether that is the one behind the position it was given.
    pub(super) resumed: bool,
}

/// The stream over `SUBJECT.>`.
pub(super) async fn find(context: &Context, settings: &Durable, subject: &str) -> Result<Stream> {
    let name = settings.stream_name(subject);
    let covered = format!("{subject}.>");
    let mut created = false;
    let stream = loop {
        match context.get_stream(&name).await {
            Ok(stream) => break stream,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(reply)
                    if reply.code() == 404 && settings.create && !created =>
                {
                    created = true;
                    create(context, settings, &name, &covered).await?;
                }
                GetStreamErrorKind::JetStream(reply) if reply.code() == 404 => {
                    let error = Error::new(ErrorKind::Unavailable, "connect");
                    return Err(
                        error.with_context(format!("there is no stream {name}, and `create` is false"))
                    );
                }
                _ => {
                    return Err(failed(
                        &format!("the stream {name} cannot be asked for"),
                        has_jetstream(context),
                        error,
                    ));
                }
            },
        }
    };
    judge(&name, &covered, &stream.cached_info().config)?;
    Ok(stream)
}

async fn create(context: &Context, settings: &Durable, name: &str, covered: &str) -> Result<()> {
    let config = Config {
        name: name.to_owned(),
        description: Some("Frames between the nodes of a backplane".to_owned()),
        subjects: vec![covered.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: match settings.storage {
            Storage::Memory => StorageType::Memory,
            Storage::File => StorageType::File,
        },
        num_replicas: settings.replicas,
        max_age: settings.max_age,
        max_bytes: i64::try_from(settings.max_bytes).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATES.min(settings.max_age),
        ..Config::default()
    };
    let Err(error) = context.create_stream(config).await else { return Ok(()) };
    if let CreateStreamErrorKind::JetStream(reply) = error.kind() {
        let reason = match reply.error_code() {
            // Somebody was faster, with other limits than ours: theirs hold.
            ErrorCode::STREAM_NAME_EXIST => return Ok(()),
            ErrorCode::STREAM_SUBJECT_OVERLAP => {
                format!("another stream than {name} keeps messages of {covered}; see `stream` and `subject`")
            }
            _ => {
                return Err(failed(
                    &format!("the stream {name} cannot be made"),
                    has_jetstream(context),
                    error,
                ));
            }
        };
        return Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(reason));
    }
    Err(failed(&format!("the stream {name} cannot be made"), has_jetstream(context), error))
}

/// Whether a stream that others made serves us.
fn judge(name: &str, covered: &str, config: &Config) -> Result<()> {
    let wrong = if !config.subjects.iter().any(|subject| subject == covered) {
        format!("does not keep {covered}")
    } else if config.retention != RetentionPolicy::Limits {
        "forgets what was read".to_owned()
    } else if config.no_ack {
        "acknowledges nothing".to_owned()
    } else if config.sealed {
        "takes no messages".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(format!("the stream {name} {wrong}")))
}

/// Behind `resume` when nothing is missing from there on, else at the end.
pub(super) async fn start(stream: &Stream, resume: Option<&Position>) -> Result<Start> {
    let info = stream.cached_info();
    let (first, last) = (info.state.first_sequence, info.state.last_sequence);
    let anew = Start { sequence: last + 1, resumed: false };
    let Some(standing) = resume.and_then(Standing::read) else { return Ok(anew) };
    let next = standing.sequence.saturating_add(1);
    if standing.stream != nanoseconds!(info.created) || standing.sequence > last || next < first {
        return Ok(anew);
    }
    if standing.sequence >= first {
        match stream.get_raw_message(standing.sequence).await {
            Ok(message) if nanoseconds!(message.time) != standing.stored => return Ok(anew),
            Ok(_) => {}
            Err(error) => {
                // It went since: whether others went with it shows by the number of the first that comes.
                let gone = matches!(error.kind(), jetstream::stream::RawMessageErrorKind::NoMessageFound);
                if !gone {
                    return Err(failed("the last message that was handled cannot be asked for", true, error));
                }
            }
        }
    }
    Ok(Start { sequence: next, resumed: true })
}

fn has_jetstream(context: &Context) -> bool {
    context.client().server_info().jetstream
}

/// What a failed request of JetStream means. Refusals by permission are never answered, and told elsewhere.
pub(super) fn failed(what: &str, jetstream: bool, error: impl StdError + Send + Sync + 'static) -> Error {
    let kind = match cause::<jetstream::Error>(&error) {
        Some(reply) => match reply.error_code() {
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                ErrorKind::Unsupported
            }
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED | ErrorCode::BAD_REQUEST => ErrorKind::InvalidConfig,
            _ => ErrorKind::Unavailable,
        },
        None => match cause::<RequestError>(&error).map(RequestError::kind) {
            Some(RequestErrorKind::TimedOut) => ErrorKind::Timeout,
            // Nobody answers requests of JetStream, and the server itself says that it has none.
            Some(RequestErrorKind::NoResponders) if !jetstream => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        },
    };
    Error::new(kind, "connect").with_context(what.to_owned()).with_source(error)
}

fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
