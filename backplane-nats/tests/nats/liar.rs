//! What no real server can be brought to say at a given moment: said by a socket that plays one.

use std::time::{Duration, Instant};

use backplane_core::{Bus as _, ErrorKind};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;

/// Plays a server for one client, which subscribes to its probes: each of them comes back. Until `probes` did.
async fn play(listener: &TcpListener, probes: usize) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let info =
        r#"INFO {"server_id":"liar","version":"2.9.10","headers":true,"max_payload":1048576,"proto":1}"#;
    stream.write_all(format!("{info}\r\n").as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let (mut seen, mut number) = (0, String::new());
    while seen < probes {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let mut words = line.split_whitespace();
        match words.next().unwrap() {
            "PING" => stream.write_all(b"PONG\r\n").await.unwrap(),
            "SUB" => number = words.last().unwrap().to_owned(),
            "PUB" => {
                let subject = words.next().unwrap();
                let length: usize = words.last().unwrap().parse().unwrap();
                let mut payload = vec![0; length + 2];
                stream.read_exact(&mut payload).await.unwrap();
                stream.write_all(format!("MSG {subject} {number} {length}\r\n").as_bytes()).await.unwrap();
                stream.write_all(&payload).await.unwrap();
                seen += 1;
            }
            _ => {}
        }
    }
    stream.into_inner()
}

#[tokio::test]
async fn the_end_of_a_connection_is_noticed_behind_more_words_than_the_crate_keeps() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    for _ in 0..5 {
        let bus = bus(&url);
        let (mut link, mut server) =
            tokio::join!(async { bus.connect(attach(&[], None)).await.unwrap() }, play(&listener, 1));
        let words: String = (0..20_000)
            .map(|number| format!("-ERR 'Permissions Violation for Publish to \"x.{number}\"'\r\n"))
            .collect();
        server.write_all(words.as_bytes()).await.unwrap();
        drop(server);
        let start = Instant::now();
        let error = next(&mut link).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
