//! From a client's call to a hub method and back: binding of arguments, the error texts, panics.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clients::read;
use crate::context::{CallPlace, HubContext};
use crate::error::{HubError, HubResult};
use crate::protocol::HubProtocol;

/// What a method answered, not yet encoded.
pub(crate) type Value = Box<dyn erased_serde::Serialize + Send>;

type Answer = BoxFuture<'static, HubResult<Value>>;

/// An async function that can be a hub method: of [`HubContext`] and up to eight arguments.
pub trait HubMethod<S, A>: Send + Sync + 'static {
    /// What it answers.
    type Output: Serialize + Send + 'static;

    /// Runs it.
    fn call(&self, hub: HubContext<S>, arguments: A) -> BoxFuture<'static, HubResult<Self::Output>>;
}

/// The arguments of a hub method: a tuple of values that can be deserialized.
pub trait MethodArguments: Sized + Send + 'static {
    /// How many there are.
    const COUNT: usize;

    /// Reads them from their encoding; `values` are as many as [`COUNT`](MethodArguments::COUNT).
    ///
    /// # Errors
    /// The first that does not fit its type.
    fn bind(values: &[Bytes], protocol: &dyn HubProtocol) -> Result<Self, erased_serde::Error>;
}

macro_rules! methods {
    ($count:literal $(, $name:ident $index:tt)*) => {
        impl<S, F, Fut, R, $($name),*> HubMethod<S, ($($name,)*)> for F
        where
            F: Fn(HubContext<S>, $($name),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = HubResult<R>> + Send + 'static,
            R: Serialize + Send + 'static,
        {
            type Output = R;

            fn call(&self, hub: HubContext<S>, arguments: ($($name,)*)) -> BoxFuture<'static, HubResult<R>> {
                let _ = &arguments;
                self(hub, $(arguments.$index),*).boxed()
            }
        }

        impl<$($name: DeserializeOwned + Send + 'static),*> MethodArguments for ($($name,)*) {
            const COUNT: usize = $count;

            fn bind(values: &[Bytes], protocol: &dyn HubProtocol) -> Result<Self, erased_serde::Error> {
                let _ = (values, protocol);
                Ok(($(read::<$name>(protocol, &values[$index])?,)*))
            }
        }
    };
}

methods!(0);
methods!(1, A0 0);
methods!(2, A0 0, A1 1);
methods!(3, A0 0, A1 1, A2 2);
methods!(4, A0 0, A1 1, A2 2, A3 3);
methods!(5, A0 0, A1 1, A2 2, A3 3, A4 4);
methods!(6, A0 0, A1 1, A2 2, A3 3, A4 4, A5 5);
methods!(7, A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6);
methods!(8, A0 0, A1 1, A2 2, A3 3, A4 4, A5 5, A6 6, A7 7);

/// Binds and prepares a call, whatever its types.
type Prepare<S> =
    Box<dyn Fn(HubContext<S>, &[Bytes], &dyn HubProtocol) -> Result<Answer, HubError> + Send + Sync>;

/// A method under its name.
pub(crate) struct Registered<S> {
    name: Arc<str>,
    prepare: Prepare<S>,
}

impl<S> Registered<S> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl<S: Send + Sync + 'static> Registered<S> {
    pub(crate) fn new<F, A>(name: &str, method: F) -> Self
    where
        F: HubMethod<S, A>,
        A: MethodArguments,
    {
        let method = Arc::new(method);
        let prepare = move |hub, values: &[Bytes], protocol: &dyn HubProtocol| {
            let invalid = |text: String| HubError::private("InvalidDataException", text);
            if values.len() != A::COUNT {
                let (given, expected) = (values.len(), A::COUNT);
                return Err(invalid(format!(
                    "Invocation provides {given} argument(s) but target expects {expected}."
                )));
            }
            // `Deserialize` of an application may panic, as a method may.
            let bound = std::panic::catch_unwind(AssertUnwindSafe(|| A::bind(values, protocol)));
            let bound = bound.unwrap_or_else(|panic| {
                let text = panic_text(panic.as_ref());
                tracing::error!(panic = text, "reading an argument panicked");
                Err(serde::de::Error::custom(text))
            });
            let arguments = bound.map_err(|error| {
                tracing::debug!(%error, "an argument does not fit its type");
                invalid(MISFIT.into())
            })?;
            let method = method.clone();
            // The method's own code runs when it is the call's turn, not now.
            let answer = async move { Ok(Box::new(method.call(hub, arguments).await?) as Value) };
            Ok(answer.boxed())
        };
        Self { name: name.into(), prepare: Box::new(prepare) }
    }

    /// Prepares a call, with what the client wrote.
    pub(crate) fn prepare(&self, hub: HubContext<S>, call: &Call) -> Result<Prepared, Refusal> {
        let name = self.name.clone();
        let answer = (self.prepare)(hub, &call.arguments, call.protocol.as_ref())
            .map_err(|error| Refusal::before(&name, error))?;
        if call.streaming {
            return Err(Refusal::streaming(&name));
        }
        if call.streams > 0 {
            let sent = call.streams;
            let error = HubError::public(format!("Client sent {sent} stream(s), Hub method expects 0."));
            return Err(Refusal { summary: failed(&name), error: Some(error) });
        }
        Ok(Prepared { name, answer })
    }
}

const MISFIT: &str = "Error binding arguments. Make sure that the types of the provided values match the types of \
                      the hub method being invoked.";

/// A call as a client wrote it.
pub(crate) struct Call {
    pub(crate) target: String,
    pub(crate) arguments: Vec<Bytes>,
    /// How many upload streams it brings.
    pub(crate) streams: usize,
    /// Whether it wants a stream as its answer.
    pub(crate) streaming: bool,
    pub(crate) protocol: Arc<dyn HubProtocol>,
    pub(crate) place: CallPlace,
}

/// A call whose arguments fit; nothing of its method has run.
pub(crate) struct Prepared {
    /// The method's name as declared.
    pub(crate) name: Arc<str>,
    answer: Answer,
}

impl Prepared {
    /// Runs the method. A panic is an error of this call alone.
    pub(crate) async fn run(self) -> (Arc<str>, HubResult<Value>) {
        let result = AssertUnwindSafe(self.answer).catch_unwind().await.unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            tracing::error!(method = &*self.name, panic = text, "a hub method panicked");
            Err(HubError::private("Panic", text.to_owned()))
        });
        (self.name, result)
    }
}

/// The text of a panic, as far as it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// A call that was not begun.
#[derive(Debug)]
pub(crate) struct Refusal {
    summary: String,
    error: Option<HubError>,
}

impl Refusal {
    /// A method that is not there. The client is always told.
    pub(crate) fn unknown(target: &str) -> Self {
        Self::before(target, HubError::public("Method does not exist."))
    }

    /// One more call, while too many of the same client run.
    pub(crate) fn too_many(target: &str) -> Self {
        Self::before(target, HubError::public("Too many calls of this connection have not ended."))
    }

    fn before(name: &str, error: HubError) -> Self {
        Self {
            summary: format!("Failed to invoke '{name}' due to an error on the server."),
            error: Some(error),
        }
    }

    fn streaming(name: &str) -> Self {
        let summary = format!(
            "The client attempted to invoke the non-streaming '{name}' method with a streaming invocation."
        );
        Self { summary, error: None }
    }

    /// The text for the client.
    pub(crate) fn text(self, detailed: bool) -> String {
        match self.error {
            Some(error) => error.tell(self.summary, detailed),
            None => self.summary,
        }
    }
}

/// How the text about a call begins that was run and failed.
pub(crate) fn failed(name: &str) -> String {
    format!("An unexpected error occurred invoking '{name}' on the server.")
}
