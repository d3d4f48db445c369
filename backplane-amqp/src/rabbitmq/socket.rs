//! The byte stream under an AMQP connection: TCP, with or without TLS, that can be cut from outside and tells when the
//! broker was last heard.
//!
//! lapin drives a connection on a thread of its own. A link that is given up must not depend on that thread getting a
//! word out to a broker that may be frozen, so the stream itself can be cut.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_rs::traits::Reactor;
use backplane_core::{Error, ErrorKind, Result};
use futures::io::{AsyncRead, AsyncWrite};
use futures::task::AtomicWaker;
use futures::{Stream, stream};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{RabbitAddress, RabbitConfig};

/// What both ends of the cut know.
pub(super) struct Cable {
    cut: AtomicBool,
    start: Instant,
    /// When bytes last came, in milliseconds after `start`.
    heard: AtomicU64,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Whether no more bytes will come.
    over: watch::Sender<bool>,
}

impl fmt::Debug for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cable").field("cut", &self.is_cut()).finish_non_exhaustive()
    }
}

impl Cable {
    /// Ends the stream: every read and write fails from now on, and the connection is closed.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// When the broker was last heard.
    pub(super) fn heard(&self) -> Instant {
        self.start + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    /// Returns when the connection has ended, whoever ended it. lapin may leave a question unanswered that is asked in the
    /// moment in which its thread ends; this does not.
    pub(super) async fn over(&self) {
        // It cannot fail: we hold the sender.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

pub(super) struct Socket {
    stream: Transport,
    cable: Arc<Cable>,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects; the caller sets the deadline.
    pub(super) async fn connect(
        config: &RabbitConfig,
        address: &RabbitAddress,
    ) -> Result<(Self, Arc<Cable>)> {
        let unreachable = |error: io::Error| {
            Error::new(ErrorKind::Unavailable, "connect").with_context(address.to_string()).with_source(error)
        };
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let stream = match &config.tls {
            None => Transport::Plain(stream),
            Some(settings) => {
                let name = ServerName::try_from(address.host.clone()).map_err(|error| {
                    Error::new(ErrorKind::InvalidConfig, "connect")
                        .with_context(format!(
                            "`{}` is no host name that a certificate can prove",
                            address.host
                        ))
                        .with_source(error)
                })?;
                let stream = TlsConnector::from(settings.config().clone())
                    .connect(name, stream)
                    .await
                    .map_err(|error| backplane_tls::handshake_failed(error, &address.host))?;
                Transport::Tls(Box::new(stream))
            }
        };
        let cable = Arc::new(Cable {
            cut: AtomicBool::new(false),
            start: Instant::now(),
            heard: AtomicU64::new(0),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            over: watch::Sender::new(false),
        });
        Ok((Self { stream, cable: cable.clone() }, cable))
    }

    fn write_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Transport, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.cable.writer.register(cx.waker());
        if self.cable.is_cut() {
            return Poll::Ready(Err(given_up()));
        }
        write(&mut self.stream, cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.cable.over.send_replace(true);
    }
}

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the link was given up")
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.cable.reader.register(cx.waker());
        if this.cable.is_cut() {
            return Poll::Ready(Err(given_up()));
        }
        let mut buffer = ReadBuf::new(bytes);
        let read = ready!(match &mut this.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        });
        let length = buffer.filled().len();
        if read.is_err() || length == 0 {
            this.cable.over.send_replace(true);
        }
        read?;
        this.cable.note();
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write_with(cx, |stream, cx| match stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write_with(cx, |stream, cx| match stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write_with(cx, |stream, cx| match stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        })
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS wants to write here; a thread of lapin waits for it.
        self.get_mut().write_with(cx, |stream, cx| match stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        })
    }
}

/// What tells lapin that connections run over [`Socket`]s. It makes none: each is handed in connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sockets;

impl Reactor for Sockets {
    type TcpStream = Socket;
    type Sleep = tokio::time::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = std::time::Instant> + Send + 'static {
        stream::unfold(tokio::time::interval(duration), |mut interval| async {
            Some((interval.tick().await.into_std(), interval))
        })
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
