//! The ceiling of any reply: a server that reads the body and answers, and does nothing else.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context;
use bytes::Bytes;

/// A bare server in a process of its own. Killed when dropped.
#[derive(Debug)]
pub struct BareServer {
    child: Child,
    /// Its URL.
    pub url: String,
}

impl BareServer {
    /// Starts one: this very binary.
    pub fn start() -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(own)
            .arg("bare-server")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut url = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut url)?;
        Ok(Self { child, url: url.trim().to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until killed.
pub async fn serve() -> anyhow::Result<()> {
    let app = || App::new().default_service(web::to(reply));
    let server = HttpServer::new(app).bind(("127.0.0.1", 0))?;
    println!("http://{}", server.addrs().first().context("an address")?);
    Ok(server.run().await?)
}

async fn reply(_body: Bytes) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(r#"{"status":"received"}"#)
}
