//! A private nginx that serves one of the configurations in `tests/nginx`.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Folder, Launch, Process, StartError};

use super::program::required;
use super::server::port;

const START_DEADLINE: Duration = Duration::from_secs(10);

/// How many free ports are tried: somebody else may be faster.
const PORTS: usize = 5;

/// The addresses that stand in the configurations, for a reader to replace.
const LISTEN: &str = "127.0.0.1:8080";
const SERVERS: [&str; 2] = ["127.0.0.1:5001", "127.0.0.1:5002"];

/// One nginx in front of two servers. It ends when this is dropped.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    port: u16,
}

impl Nginx {
    /// Starts one with `tests/nginx/<configuration>` in front of two ports. `edits` replace what stands in it exactly
    /// once. `None`: nginx is not installed; the skip was printed.
    ///
    /// # Panics
    /// When it is missing although `BACKPLANE_TEST_REQUIRE` names it, does not start, or an edit does not apply.
    pub async fn require(configuration: &str, servers: [u16; 2], edits: &[(&str, &str)]) -> Option<Self> {
        let program = required("nginx")?;
        let mut taken = None;
        for _ in 0..PORTS {
            let port = port();
            let nginx = Self::prepare(&program, configuration, port, servers, edits);
            match nginx.run().await {
                Ok(()) => return Some(nginx),
                Err(StartError::PortTaken(error)) => taken = Some(error),
                Err(StartError::Failed(error)) => panic!("nginx: {error}\n{}", nginx.errors()),
            }
        }
        panic!("nginx: no port of {PORTS} was free: {taken:?}");
    }

    fn prepare(
        program: &Path,
        configuration: &str,
        port: u16,
        servers: [u16; 2],
        edits: &[(&str, &str)],
    ) -> Self {
        let folder = Folder::new("nginx").expect("a temporary folder can be made");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx").join(configuration);
        let mut text = std::fs::read_to_string(&file).expect("the configuration is there");
        replace(&mut text, LISTEN, &format!("127.0.0.1:{port}"));
        for (written, server) in SERVERS.into_iter().zip(servers) {
            replace(&mut text, written, &format!("127.0.0.1:{server}"));
        }
        for (written, instead) in edits {
            replace(&mut text, written, instead);
        }
        folder.write("site.conf", text).expect("the folder can be written");
        folder.write("nginx.conf", surroundings(folder.path())).expect("the folder can be written");
        let mut launch = Launch::new("nginx", program.to_owned());
        launch.arguments = ["-p", ".", "-c", "nginx.conf", "-e", "error.log"].map(Into::into).into();
        launch.deadline = bound(START_DEADLINE);
        Self { process: Process::new(launch, folder), port }
    }

    async fn run(&self) -> Result<(), StartError> {
        // Its own word, for somebody else may have taken the port: it writes the file when it has bound it.
        let pid = self.process.folder().path().join("nginx.pid");
        self.process
            .start(async |id| std::fs::read_to_string(&pid).is_ok_and(|own| own.trim() == id.to_string()))
            .await
    }

    /// Its address, as a client writes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it wrote into its error log.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.process.folder().path().join("error.log")).unwrap_or_default()
    }
}

fn replace(text: &mut String, written: &str, instead: &str) {
    let times = text.matches(written).count();
    assert_eq!(times, 1, "{written:?} stands {times} times in the configuration");
    *text = text.replace(written, instead);
}

/// What an installation brings: everything that is not about the hub, and kept inside the folder.
fn surroundings(folder: &Path) -> String {
    // Workers of a root's nginx are somebody else by default, who may not enter a private folder.
    let root = folder.metadata().is_ok_and(|folder| folder.uid() == 0);
    let user = if root { "user root;" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes 2;
pid nginx.pid;
error_log error.log info;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include site.conf;
}}
"
    )
}
