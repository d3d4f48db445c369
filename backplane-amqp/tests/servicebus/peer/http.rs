//! The management interface.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Event, State};

pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = state.clone();
        let service = service_fn(move |request| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(answer(&state, request).await) }
        });
        connections.spawn(async move {
            // A client may go away at any time.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let method = request.method().clone();
    let path = request.uri().path().trim_matches('/').to_owned();
    assert_eq!(request.uri().query(), Some("api-version=2021-05"));
    let token = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let body = String::from_utf8(request.into_body().collect().await.unwrap().to_bytes().into()).unwrap();
    let status = if state.manners.lock().management_busy {
        state.note(Event::Busy);
        StatusCode::SERVICE_UNAVAILABLE
    } else if state.verify(&token, &format!("https://127.0.0.1/{path}")).is_none() {
        StatusCode::UNAUTHORIZED
    } else {
        manage(state, &method, &path, &body)
    };
    let seconds = state.manners.lock().busy_seconds;
    let body = format!(
        "<Error><Code>{}</Code><Detail>Please wait {seconds} seconds.</Detail></Error>",
        status.as_u16()
    );
    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
}

fn manage(state: &State, method: &Method, path: &str, body: &str) -> StatusCode {
    let mut entities = state.entities.lock();
    match (method, path.split_once("/subscriptions/")) {
        (&Method::PUT, None) => {
            assert!(body.contains("<TopicDescription "), "{body}");
            let made = !entities.topics.contains_key(path);
            entities.topics.entry(path.to_owned()).or_default();
            drop(entities);
            state.note(Event::Topic { name: path.to_owned(), made });
            if made { StatusCode::CREATED } else { StatusCode::CONFLICT }
        }
        (&Method::PUT, Some((topic, name))) => {
            assert!(body.contains("<SubscriptionDescription "), "{body}");
            let made = entities.subscribe(topic, name, body);
            drop(entities);
            match made {
                None => StatusCode::NOT_FOUND,
                Some(false) => StatusCode::CONFLICT,
                Some(true) => {
                    let (topic, name) = (topic.to_owned(), name.to_owned());
                    state.note(Event::Subscribed { topic, name, description: body.to_owned() });
                    StatusCode::CREATED
                }
            }
        }
        (&Method::DELETE, Some((topic, name))) => {
            let there = entities.topics.get_mut(topic).is_some_and(|topic| topic.remove(name).is_some());
            drop(entities);
            if there {
                state.note(Event::Unsubscribed { name: name.to_owned() });
            }
            if there { StatusCode::OK } else { StatusCode::NOT_FOUND }
        }
        _ => StatusCode::METHOD_NOT_ALLOWED,
    }
}
