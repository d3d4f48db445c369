//! One TCP or TLS connection to the server, with Nagle's delay off.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use backplane_core::{Error, ErrorKind, Result};
use bytes::BufMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::RedisConfig;

pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Connects; the caller sets the deadline.
    pub(crate) async fn connect(config: &RedisConfig) -> Result<Self> {
        let unreachable = |error: io::Error| {
            Error::new(ErrorKind::Unavailable, "connect").with_context(config.address()).with_source(error)
        };
        let stream = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(unreachable)?;
        // Without it the p99 of a paced flow is 18 ms instead of 0.2 ms.
        stream.set_nodelay(true).map_err(unreachable)?;
        let Some(settings) = &config.tls else { return Ok(Self::Plain(stream)) };
        let name = ServerName::try_from(config.host.clone()).map_err(|error| {
            Error::new(ErrorKind::InvalidConfig, "connect")
                .with_context(format!("`{}` is no host name that a certificate can prove", config.host))
                .with_source(error)
        })?;
        let stream = TlsConnector::from(settings.config().clone())
            .connect(name, stream)
            .await
            .map_err(|error| backplane_tls::handshake_failed(error, &config.host))?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Reads what is there into `buffer`. An end of the stream is an error.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut impl BufMut,
    ) -> Poll<io::Result<usize>> {
        match ready!(pin!(self.read_buf(buffer)).poll(cx))? {
            0 => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            ))),
            read => Poll::Ready(Ok(read)),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
