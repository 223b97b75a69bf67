//! A TCP server that greets with its name and sends every line back.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use anyhow::Result;

use super::tcp_server::TcpServer;
use crate::topology::Host;

/// Listens on IPv4 and IPv6 until dropped; dropping it ends its connections.
#[derive(Debug)]
pub struct EchoServer {
    _server: TcpServer,
}

impl EchoServer {
    /// Listens on `port` of `host`, under the host's name.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Ok(Self { _server: TcpServer::start(host, port, serve)? })
    }
}

fn serve(stream: TcpStream, name: &str) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut answer = stream.try_clone().ok()?;
    answer.write_all(format!("{name}\n").as_bytes()).ok()?;
    for line in BufReader::new(stream).lines() {
        let mut line = line.ok()?;
        if line.starts_with("QUIT") {
            break;
        }
        line.push('\n');
        answer.write_all(line.as_bytes()).ok()?;
    }
    answer.shutdown(std::net::Shutdown::Both).ok()
}
