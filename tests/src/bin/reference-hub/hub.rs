//! The methods of the hub, as the README of the recordings lists them.
//!
//! Missing until streams are served: `Counter`, `FailingStream`, `UploadSum`, `UploadTwo` and `Double`. What the
//! recordings say of them, also about plain calls to them, stands in `pending.md`.

use std::time::Duration;

use backplane::{ConnectionId, Error, UserId};
use backplane_signalr::{Arguments, Hub, HubContext, HubError, HubResult, Recipients};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

type Context = HubContext<()>;
/// In .NET every text may be null.
type Text = Option<String>;

pub(crate) fn hub() -> Hub<()> {
    let hub = Hub::new(()).user_id(|request| query(request.uri.query()?, "user").map(UserId::from));
    let hub = hub.on_connected(|hub: Context| async move {
        match query(hub.query(), "reject") {
            Some(_) => Err(HubError::public("rejected")),
            None => Ok(()),
        }
    });
    questions(groups(sends(calls(hub))))
}

/// The value of a key of a query; the recordings need no percent-decoding.
fn query(query: &str, wanted: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == wanted).then(|| value.to_owned())
    })
}

fn calls(hub: Hub<()>) -> Hub<()> {
    hub.method("Id", async |hub: Context| Ok(hub.connection_id().to_string()))
        .method("User", async |hub: Context| Ok(hub.user().map(|user| user.as_str().to_owned())))
        .method("Sum", async |_: Context, a: i32, b: i32| Ok(a.wrapping_add(b)))
        .method("Echo", async |_: Context, text: Text| Ok(text))
        .method("EchoAny", async |_: Context, any: Box<RawValue>| Ok(any))
        .method("Move", async |_: Context, point: Option<Point>, dx: i32| {
            let point = point.ok_or_else(|| HubError::private("NullReferenceException", "no point"))?;
            Ok(Point { x: point.x.wrapping_add(dx), ..point })
        })
        .method("Nothing", async |_: Context| Ok(()))
        .method("Null", async |_: Context| Ok(None::<String>))
        .method("renamed", async |_: Context| Ok("named"))
        .method("Wait", wait)
        .method("Fail", async |_: Context| {
            Err::<(), _>(HubError::private("InvalidOperationException", "secret detail"))
        })
        .method("FailHub", async |_: Context| Err::<(), _>(HubError::public("told to the client")))
        .method("AbortMe", async |hub: Context| {
            hub.abort();
            Ok(())
        })
}

async fn wait(hub: Context, milliseconds: u32) -> HubResult<u32> {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(milliseconds.into())) => Ok(milliseconds),
        () = hub.ended() => Err(HubError::private("TaskCanceledException", "A task was canceled.")),
    }
}

/// What .NET throws where a name may not be null.
fn not_null<T>(value: Option<T>, name: &str) -> HubResult<T> {
    value.ok_or_else(|| {
        HubError::private("ArgumentNullException", format!("Value cannot be null. (Parameter '{name}')"))
    })
}

/// Sends what every method of this hub sends: `m` with one argument.
async fn m(recipients: &Recipients, message: Text) -> HubResult {
    Ok(recipients.send("m", (message,)).await?)
}

fn sends(hub: Hub<()>) -> Hub<()> {
    hub.method("SendMessage", async |hub: Context, user: Text, message: Text| {
        Ok(hub.clients().all().send("ReceiveMessage", (user, message)).await?)
    })
    .method("ToCaller", async |hub: Context, message: Text| {
        Ok(hub.clients().caller().send("m", (message,)).await?)
    })
    .method("ToOthers", async |hub: Context, message: Text| m(&hub.clients().others(), message).await)
    .method("ToAllExcept", async |hub: Context, except: Option<Vec<String>>, message: Text| {
        m(&hub.clients().all_except(not_null(except, "excludedConnectionIds")?), message).await
    })
    .method("ToConnection", async |hub: Context, id: Text, message: Text| {
        Ok(hub.clients().client(not_null(id, "connectionId")?).send("m", (message,)).await?)
    })
    .method("ToConnections", async |hub: Context, ids: Option<Vec<String>>, message: Text| {
        m(&hub.clients().clients(not_null(ids, "connectionIds")?), message).await
    })
    .method("ToUser", async |hub: Context, user: Text, message: Text| {
        m(&hub.clients().user(not_null(user, "userId")?), message).await
    })
    .method("ToUsers", async |hub: Context, users: Option<Vec<String>>, message: Text| {
        m(&hub.clients().users(not_null(users, "userIds")?), message).await
    })
}

fn groups(hub: Hub<()>) -> Hub<()> {
    hub.method("ToGroup", async |hub: Context, group: Text, message: Text| {
        m(&hub.clients().group(not_null(group, "groupName")?), message).await
    })
    .method("ToGroups", async |hub: Context, groups: Option<Vec<String>>, message: Text| {
        m(&hub.clients().groups(not_null(groups, "groupNames")?), message).await
    })
    .method("ToGroupExcept", async |hub: Context, group: Text, except: Option<Vec<String>>, message: Text| {
        let (group, except) = (not_null(group, "groupName")?, not_null(except, "excludedConnectionIds")?);
        m(&hub.clients().group_except(group, except), message).await
    })
    .method("ToOthersInGroup", async |hub: Context, group: Text, message: Text| {
        m(&hub.clients().others_in_group(not_null(group, "groupName")?), message).await
    })
    .method("Join", async |hub: Context, group: Text| {
        Ok(hub.groups().add(hub.connection_id().clone(), not_null(group, "groupName")?).await?)
    })
    .method("Leave", async |hub: Context, group: Text| {
        Ok(hub.groups().remove(hub.connection_id().clone(), not_null(group, "groupName")?).await?)
    })
    .method("JoinOther", async |hub: Context, id: Text, group: Text| {
        let (id, group) = (not_null(id, "connectionId")?, not_null(group, "groupName")?);
        unless_unknown(hub.groups().add(id, group).await)
    })
    .method("LeaveOther", async |hub: Context, id: Text, group: Text| {
        let (id, group) = (not_null(id, "connectionId")?, not_null(group, "groupName")?);
        unless_unknown(hub.groups().remove(id, group).await)
    })
}

/// .NET without a backplane does not say that nobody has the connection. Ours does; this hub keeps it to itself.
fn unless_unknown(changed: Result<(), Error>) -> HubResult {
    match changed {
        Err(error) if error.kind() == backplane::ErrorKind::ConnectionNotFound => Ok(()),
        changed => Ok(changed?),
    }
}

fn questions(hub: Hub<()>) -> Hub<()> {
    hub.method("Ask", async |hub: Context, id: Text, question: Text| {
        let answer: Text = asked(&hub, id)?.invoke("Answer", answer_to(question)).await?;
        Ok(answer)
    })
    .method("AskInt", async |hub: Context, id: Text, question: Text| {
        let answer: i32 = asked(&hub, id)?.invoke("Answer", answer_to(question)).await?;
        Ok(answer)
    })
    .method("AskFor", async |hub: Context, id: Text, question: Text, milliseconds: u32| {
        let patience = Duration::from_millis(milliseconds.into());
        let answer: Text = asked(&hub, id)?.invoke_within("Answer", answer_to(question), patience).await?;
        Ok(answer)
    })
}

fn asked(hub: &Context, id: Text) -> HubResult<backplane_signalr::Client> {
    Ok(hub.clients().client(ConnectionId::from(not_null(id, "connectionId")?)))
}

fn answer_to(question: Text) -> impl Arguments + 'static {
    (question,)
}

/// Two whole numbers; on the wire as .NET reads them: names in any case, unknown ones ignored, missing ones 0, the last
/// of several counts.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Point {
    x: i32,
    y: i32,
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Point;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with x and y")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Point, A::Error> {
                let mut point = Point::default();
                while let Some(name) = members.next_key::<String>()? {
                    match name.to_lowercase().as_str() {
                        "x" => point.x = members.next_value()?,
                        "y" => point.y = members.next_value()?,
                        _ => drop(members.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(point)
            }
        }

        deserializer.deserialize_map(Members)
    }
}
