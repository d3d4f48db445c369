//! HTTP with a deadline for request heads, which `axum::serve` does not have: whoever sends half a head would keep its
//! connection for ever.

use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;

use axum::Router as App;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long to wait when nothing can be accepted, as when the process has no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then until the requests that have come are answered. Connections are cut when this is dropped;
/// those that became a WebSocket belong to their hub.
///
/// `heads`: how long a client may take to send a request's head, and may be silent between two requests.
pub(crate) async fn serve(listener: TcpListener, app: App, heads: Duration, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Ends what was kept of it.
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY");
                }
                connections.spawn(connection(stream, app.clone(), heads, stop.clone()));
            }
            // The client has gone again already.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection, until it ends or is a WebSocket.
async fn connection(stream: TcpStream, app: App, heads: Duration, stop: CancellationToken) {
    let (asked, app) = (CancellationToken::new(), TowerToHyperService::new(app));
    let service = {
        let asked = asked.clone();
        service_fn(move |request: Request<Incoming>| {
            asked.cancel();
            app.call(request)
        })
    };
    // The hub knows the streams of this builder, as it does those of `axum::serve`.
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(heads);
    let mut connection = pin!(http.serve_connection_with_upgrades(TokioIo::new(stream), service));

    // The deadline of the builder does not count yet while it cannot tell which HTTP is spoken, and its graceful end
    // waits for the rest of a first head. So the first head is awaited here.
    let mut ended = tokio::select! {
        biased;
        ended = &mut connection => Some(ended),
        () = asked.cancelled() => None,
        () = sleep(heads) => return,
        () = stop.cancelled() => return,
    };
    if ended.is_none() {
        ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = stop.cancelled() => None,
        };
    }
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::extract::Request;
    use axum::http::{StatusCode, header};
    use axum::routing::get;
    use hyper_util::server::conn::auto::upgrade::downcast;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(300);
    const HEAD: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    struct Served {
        client: TcpStream,
        stop: CancellationToken,
        serving: JoinHandle<()>,
    }

    async fn served(app: App, heads: Duration) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, app, heads, stop.clone()));
        Served { client: TcpStream::connect(address).await.unwrap(), stop, serving }
    }

    fn app() -> App {
        App::new().route("/", get(async || "hello"))
    }

    async fn answer(client: &mut TcpStream) {
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert_ne!(timeout(DEADLINE, client.read_buf(&mut answer)).await.unwrap().unwrap(), 0);
        }
    }

    async fn end(client: &mut TcpStream) {
        assert_eq!(timeout(DEADLINE, client.read(&mut [0; 64])).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_its_connection() {
        // Nothing, what might become HTTP/2 yet, and what is neither.
        for begin in ["", "P", "PRI * HTTP/2.0\r\n", &HEAD[..20]] {
            // The server's time begins with the connection.
            let start = Instant::now();
            let mut served = served(app(), SHORT).await;
            served.client.write_all(begin.as_bytes()).await.unwrap();
            end(&mut served.client).await;
            assert!(start.elapsed() >= SHORT / 2, "{begin:?}: {:?}", start.elapsed());
            served.serving.abort();
        }
    }

    #[tokio::test]
    async fn so_does_a_second_head() {
        let mut served = served(app(), SHORT).await;
        served.client.write_all(HEAD.as_bytes()).await.unwrap();
        answer(&mut served.client).await;
        served.client.write_all(&HEAD.as_bytes()[..20]).await.unwrap();
        end(&mut served.client).await;
        served.serving.abort();
    }

    #[tokio::test]
    async fn half_a_head_and_silence_do_not_delay_the_end() {
        for (whole, half) in [(0, 0), (0, 20), (1, 0), (1, 20)] {
            let mut served = served(app(), 3 * DEADLINE).await;
            for _ in 0..whole {
                served.client.write_all(HEAD.as_bytes()).await.unwrap();
                answer(&mut served.client).await;
            }
            served.client.write_all(&HEAD.as_bytes()[..half]).await.unwrap();
            served.stop.cancel();
            timeout(DEADLINE, served.serving).await.expect("it ends at once").unwrap();
        }
    }

    #[tokio::test]
    async fn a_request_that_has_come_is_answered_before_the_end() {
        let (come, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let app = {
            let (come, go) = (come.clone(), go.clone());
            App::new().route(
                "/",
                get(async move || {
                    come.notify_one();
                    go.notified().await;
                    "hello"
                }),
            )
        };
        let mut served = served(app, DEADLINE).await;
        served.client.write_all(HEAD.as_bytes()).await.unwrap();
        timeout(DEADLINE, come.notified()).await.unwrap();
        served.stop.cancel();
        go.notify_one();
        answer(&mut served.client).await;
        end(&mut served.client).await;
        timeout(DEADLINE, served.serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_stream_of_an_upgrade_is_the_plain_one_and_outlives_the_server() {
        let (sender, mut upgraded) = tokio::sync::mpsc::channel(1);
        let app = App::new().route(
            "/",
            get(async move |mut request: Request| {
                tokio::spawn(async move {
                    let stream = hyper::upgrade::on(&mut request).await.unwrap();
                    let plain = downcast::<TokioIo<TcpStream>>(stream).unwrap().io.into_inner();
                    sender.send(plain).await.unwrap();
                });
                (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, "x")])
            }),
        );
        let mut served = served(app, DEADLINE).await;
        let head = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        served.client.write_all(head.as_bytes()).await.unwrap();
        let mut stream = timeout(DEADLINE, upgraded.recv()).await.unwrap().unwrap();
        assert!(stream.nodelay().unwrap());
        served.stop.cancel();
        timeout(DEADLINE, served.serving).await.unwrap().unwrap();
        stream.write_all(b"hello").await.unwrap();
        answer(&mut served.client).await;
    }
}
