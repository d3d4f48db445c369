//! The smallest useful hub. What one client says, all clients of all servers hear.
//!
//! ```text
//! cargo run -p chat                                  one server, port 5000
//! cargo run -p chat -- redis://localhost 5000        two of them, in two terminals,
//! cargo run -p chat -- redis://localhost 5001        with Redis between
//! ```
//!
//! Connect any SignalR client to `http://127.0.0.1:5000/chatHub`; with `@microsoft/signalr` in Node (a page of another origin
//! needs a CORS layer on the application):
//!
//! ```js
//! const chat = new signalR.HubConnectionBuilder().withUrl("http://127.0.0.1:5000/chatHub").build();
//! chat.on("ReceiveMessage", (user, message) => console.log(`${user}: ${message}`));
//! await chat.start();
//! await chat.invoke("SendMessage", "ann", "hello");
//! ```
#![allow(clippy::print_stdout, reason = "an example talks to its terminal")]

use std::error::Error;
use std::sync::Arc;

use backplane::Backplane as _;
use backplane_signalr::{Hub, HubContext, HubResult};
use tokio::net::TcpListener;

async fn send_message(hub: HubContext<()>, user: String, message: String) -> HubResult {
    Ok(hub.clients().all().send("ReceiveMessage", (user, message)).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "memory:".to_owned());
    let port = arguments.next().map_or(Ok(5000), |port| port.parse())?;

    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let node = backplane::open(&url).await?;
    let chat = Hub::new(()).method("SendMessage", send_message).serve(Arc::new(node.clone()))?;
    println!("The hub is at http://{}/chatHub", listener.local_addr()?);

    let app = chat.mount("/chatHub", axum::Router::new());
    let ended = async move {
        let _ = tokio::signal::ctrl_c().await;
        chat.shutdown().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(ended).await?;
    Ok(node.shutdown().await?)
}
