//! A real HTTP server (nginx) that answers with its host's name, and curl.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::{Finished, Process, wait_until};
use crate::topology::Host;

/// nginx on one host.
#[derive(Debug)]
pub struct HttpServer {
    pub process: Process,
}

impl HttpServer {
    /// Serves `port` on all addresses: `/` is the host's name, `/from` is it and who asks, `/big` is a
    /// megabyte.
    ///
    /// # Errors
    /// When nginx is missing or does not start.
    pub fn start(lab: &Arc<Lab>, host: &Host, port: u16) -> Result<Self> {
        Self::start_ports(lab, host, &[port])
    }

    /// As [`HttpServer::start`], on several ports.
    ///
    /// # Errors
    /// When nginx is missing or does not start.
    pub fn start_ports(lab: &Arc<Lab>, host: &Host, ports: &[u16]) -> Result<Self> {
        let name = &host.name;
        let root = lab.directory().join(format!("nginx-{name}"));
        fs::create_dir_all(&root)?;
        fs::write(root.join("big"), vec![b'x'; 1 << 20])?;
        let directory = root.display();
        let targets: Vec<SocketAddr> = ports
            .iter()
            .flat_map(|port| host.addresses().into_iter().map(|address| SocketAddr::new(address, *port)))
            .collect();
        let listen: String = targets.iter().map(|target| format!("listen {target}; ")).collect();
        let config = format!(
            "daemon off; master_process off; user root; pid {directory}/pid; error_log stderr;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
               access_log off; default_type text/plain;\n\
               client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
               fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
               scgi_temp_path {directory}/scgi;\n\
               server {{\n\
                 {listen}\n\
                 location = / {{ return 200 \"{name}\\n\"; }}\n\
                 location = /from {{ return 200 \"{name} $remote_addr\\n\"; }}\n\
                 location = /big {{ root {directory}; }}\n\
               }}\n\
             }}\n",
        );
        let path = root.join("nginx.conf");
        fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = lab.command("nginx")?;
        command.arg("-e").arg("stderr").arg("-p").arg(&root).arg("-c").arg(&path);
        let mut process = lab.start(&host.netns, &format!("nginx-{name}"), command)?;
        wait_until("nginx to listen", Duration::from_secs(5), || {
            process.check_running()?;
            host.netns.run(|| {
                targets.iter().all(|target| std::net::TcpStream::connect(target).is_ok()).then_some(())
            })
        })?;
        Ok(Self { process })
    }
}

/// `curl http://TARGET/PATH`: the body is its output.
///
/// # Errors
/// When curl is missing.
pub fn get(lab: &Lab, netns: &Netns, target: SocketAddr, path: &str) -> Result<Finished> {
    let mut command = lab.command("curl")?;
    command.args(["--silent", "--show-error", "--fail", "--max-time", "10", "--noproxy", "*"]);
    command.arg(format!("http://{target}{path}"));
    lab.finish(netns, command, Duration::from_secs(15))
}
