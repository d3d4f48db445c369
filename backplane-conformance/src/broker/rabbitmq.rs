//! A private RabbitMQ server.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Broker;
use super::account::{Account, launch_as};
use super::folder::Folder;
use super::port::{free_port, random};
use super::process::{Launch, Process, StartError};
use super::require::find;
use super::tls::TlsFiles;
use crate::bound;

/// With how many ports a start is tried.
const PORTS: usize = 5;

/// How long a restart waits for its ports, when somebody else has one.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a server that shares the machine with many others may take until it accepts. Alone it needs 4 to 8 s.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// How long a command of the suite may take: it starts an Erlang machine of its own.
const DEADLINE: Duration = Duration::from_secs(20);

/// The user with all rights that clients are given.
const USER: &str = "backplane";

/// Where packages keep the server's own scripts. Debian's wrapper in `/usr/sbin` insists on its account and on its folders.
const SCRIPTS: [&str; 3] = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/opt/rabbitmq/sbin"];

/// Runs the node with a port mapper of its own, in its process group: one that the node started itself would be a
/// daemon that outlives every test.
const RUN: &str = r#"
epmd -port "$ERL_EPMD_PORT" -address "$ERL_EPMD_ADDRESS" &
mapper=$!
until epmd -port "$ERL_EPMD_PORT" -names >/dev/null 2>&1; do
    kill -0 "$mapper" 2>/dev/null || { echo "epmd ended; its address already in use?"; exit 1; }
    sleep 0.02
done
exec "$0"
"#;

/// The alarm that blocks publishers is raised below this share of the machine's memory ...
const WATERMARK_OF_ALARM: &str = "0.0000001";
/// ... and RabbitMQ's default.
const WATERMARK: &str = "0.4";

/// The one for the disk, when less than this many bytes are free ...
const FREE_DISK_OF_ALARM: &str = "1000000000000000";
/// ... and as a test machine may have it: its disk may well be full enough for the default.
const FREE_DISK: &str = "1000000";

/// How a private RabbitMQ is set up.
#[derive(Clone, Debug)]
pub struct RabbitMqOptions {
    /// Whether [`url`](Broker::url) is `amqps://`, with a certificate of a private authority. Default: no.
    pub tls: bool,
    /// The names in that certificate. Default `localhost` and `127.0.0.1`; the server listens on the latter.
    pub tls_names: Vec<String>,
    /// Plugins to enable. Default: none.
    pub plugins: Vec<String>,
    /// More lines of its `rabbitmq.conf`.
    pub config: Vec<String>,
}

impl RabbitMqOptions {
    /// With AMQP 1.0 on the same port, by the plugin `rabbitmq_amqp1_0`.
    #[must_use]
    pub fn amqp_1_0() -> Self {
        Self { plugins: vec!["rabbitmq_amqp1_0".to_owned()], ..Self::default() }
    }
}

impl Default for RabbitMqOptions {
    fn default() -> Self {
        Self {
            tls: false,
            tls_names: vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()],
            plugins: Vec::new(),
            config: Vec::new(),
        }
    }
}

/// What a broker holds, to be compared before and after a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RabbitMqHoldings {
    /// Queues.
    pub queues: usize,
    /// Bindings, without those of the default exchange.
    pub bindings: usize,
    /// Consumers.
    pub consumers: usize,
    /// Client connections.
    pub connections: usize,
    /// Exchanges, without `amq.*` and the default exchange.
    pub exchanges: usize,
}

/// A private RabbitMQ node with the virtual host `/` and one user, who may do everything. It has a name, a cookie and a
/// port mapper of its own, so any number of them run beside each other. It ends when dropped.
#[derive(Debug)]
pub struct RabbitMq {
    options: RabbitMqOptions,
    address: SocketAddr,
    /// Where the suite itself looks whether it accepts: the same as `address` unless that speaks TLS.
    plain: SocketAddr,
    tls: Option<TlsFiles>,
    password: String,
    node: String,
    control: Launch,
    /// Evaluates expressions, where Erlang has it.
    caller: Option<Launch>,
    process: Process,
}

impl Broker for RabbitMq {
    type Options = RabbitMqOptions;
    const NAME: &'static str = "rabbitmq";
    const PROGRAM: &'static str = "rabbitmq-server";

    async fn start(options: RabbitMqOptions) -> Result<Self> {
        let mut taken = None;
        for _ in 0..PORTS {
            let rabbitmq = Self::prepare(options.clone())?;
            match rabbitmq.run().await {
                Ok(()) => return Ok(rabbitmq),
                Err(StartError::PortTaken(error)) => taken = Some(error),
                Err(StartError::Failed(error)) => return Err(error),
            }
        }
        Err(taken.expect("PORTS is above 0"))
    }

    fn process(&self) -> &Process {
        &self.process
    }

    fn url(&self) -> String {
        self.url_at(self.address)
    }

    async fn restart(&self) -> Result<()> {
        let deadline = Instant::now() + PORT_DEADLINE;
        loop {
            match self.run().await {
                Err(StartError::PortTaken(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                run => return Ok(run?),
            }
        }
    }
}

impl RabbitMq {
    fn prepare(options: RabbitMqOptions) -> Result<Self> {
        let (server, control) = (script(Self::PROGRAM)?, script("rabbitmqctl")?);
        let account = Account::instead_of_root("rabbitmq")?;
        let folder = Folder::new(Self::NAME)?;
        let address = loopback()?;
        let tls = options.tls.then(|| TlsFiles::create(&folder, &options.tls_names)).transpose()?;
        let plain = if options.tls { loopback()? } else { address };
        let (mapper, distribution) = (loopback()?, loopback()?);
        let password = format!("{:016x}", random());
        let name = format!("backplane-{:016x}", random());
        let node = format!("{name}@localhost");

        let config = folder
            .write("rabbitmq.conf", configuration(&options, address, plain, tls.as_ref(), &password))?;
        let plugins = folder.write("plugins", format!("[{}].\n", options.plugins.join(",")))?;
        let cookie = folder.write(".erlang.cookie", format!("{:016x}{:016x}", random(), random()))?;
        restrict(&cookie)?;
        if let Some(account) = &account {
            account.give(folder.path())?;
            account.give(&cookie)?;
            account.give(&plugins)?;
            if let Some(tls) = &tls {
                account.give(&tls.key)?;
            }
        }

        let environment = |launch: Launch| environment(launch, folder.path(), &node, mapper.port());
        let launch = launch_as(account.as_ref(), Self::NAME, PathBuf::from("/bin/sh"))
            .argument("-c")
            .argument(RUN)
            .argument(server);
        let mut launch = environment(launch)
            .variable("RABBITMQ_MNESIA_BASE", folder.path().join("mnesia"))
            .variable("RABBITMQ_LOG_BASE", folder.path().join("log"))
            .variable("RABBITMQ_LOGS", "-")
            .variable("RABBITMQ_CONFIG_FILE", &config)
            .variable("RABBITMQ_ADVANCED_CONFIG_FILE", folder.path().join("advanced.config"))
            .variable("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins)
            .variable("RABBITMQ_DIST_PORT", distribution.port().to_string())
            .variable(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 1 +A 4 -kernel inet_dist_use_interface {127,0,0,1}",
            )
            // The script then becomes the node instead of waiting for it, and signals reach the latter.
            .variable("detached", "true");
        launch.deadline = START_DEADLINE;
        let control = environment(launch_as(account.as_ref(), "rabbitmqctl", control));
        let caller = find("erl_call").ok().map(|caller| {
            let caller = environment(launch_as(account.as_ref(), "erl_call", caller));
            let address = distribution.to_string();
            ["-r", "-address", &address, "-fetch_stdout", "-e"].into_iter().fold(caller, Launch::argument)
        });
        let process = Process::new(launch, folder);
        Ok(Self { options, address, plain, tls, password, node, control, caller, process })
    }

    async fn run(&self) -> Result<(), StartError> {
        // Its greeting names the node, for another one may have taken the port.
        let name = self.node.split('@').next().unwrap_or_default().as_bytes();
        let started = self
            .process
            .start(async |_| {
                // The listener with TLS opens behind the other one.
                greets(self.plain, name).await.is_ok_and(|greets| greets)
                    && TcpStream::connect(self.address).await.is_ok()
            })
            .await;
        match started {
            Err(StartError::Failed(error)) if is_port_of_node_taken(&error) => {
                Err(StartError::PortTaken(error))
            }
            other => other,
        }
    }

    /// Where it listens for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for the user with all rights when reached at another address, such as that of a
    /// [`FaultProxy`](crate::proxy::FaultProxy).
    #[must_use]
    pub fn url_at(&self, address: SocketAddr) -> String {
        self.url_with(USER, &self.password, &address.to_string())
    }

    /// The URL for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url_with(user, password, &self.address.to_string())
    }

    fn url_with(&self, user: &str, password: &str, address: &str) -> String {
        let scheme = if self.options.tls { "amqps" } else { "amqp" };
        format!("{scheme}://{}:{}@{address}", escape(user), escape(password))
    }

    /// The URL of `topic` over AMQP 1.0 (`servicebus://`), with [`RabbitMqOptions::amqp_1_0`], for the user with all rights.
    /// Makes the node delete the queues of links 2 s after they ended, which the plugin itself never does.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn url_of_amqp_1_0(&self, topic: &str) -> Result<String> {
        let set = self.eval(EXPIRE_QUEUES_OF_LINKS).await?;
        if set != "ok" {
            return Err(Error::new(ErrorKind::Denied, "rabbitmqctl").with_context(set));
        }
        let (password, address, tls) = (escape(&self.password), self.address, self.tls.is_some());
        Ok(format!("servicebus://{USER}:{password}@{address}/{topic}?auth=sasl&management=none&tls={tls}"))
    }

    /// The user with all rights.
    #[must_use]
    pub fn user(&self) -> &'static str {
        USER
    }

    /// That user's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The files of its TLS identity, if it has one.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Runs `rabbitmqctl -q` with these arguments and returns what it printed. Half a second each.
    ///
    /// # Errors
    /// [`Denied`](ErrorKind::Denied) with its words, [`Unavailable`](ErrorKind::Unavailable) when the node does not run,
    /// [`Timeout`](ErrorKind::Timeout) after 20 s.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = command(&self.control, &["-q"]);
        let output = in_time("rabbitmqctl", command.args(arguments).stdin(Stdio::null()).output()).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let words = format!("{} {}", text(&output.stdout), text(&output.stderr));
        // 69: the node cannot be reached. 1: distribution could not be started, for the port mapper went with the node.
        let gone = matches!(output.status.code(), Some(69 | 1)) || self.process.id().is_none();
        let kind = if gone { ErrorKind::Unavailable } else { ErrorKind::Denied };
        Err(Error::new(kind, "rabbitmqctl").with_context(words))
    }

    /// Evaluates an Erlang expression on the node, such as `length(rabbit_amqqueue:list()).`, and returns its value as
    /// Erlang prints it, in one line. Takes milliseconds where Erlang's `erl_call` is installed, which comes with Debian's
    /// `erlang-base`.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn eval(&self, expression: &str) -> Result<String> {
        let Some(caller) = &self.caller else { return self.ctl(&["eval", expression]).await };
        let body = expression.trim_end().trim_end_matches('.');
        let input = format!("io:format(\"{VALUE}~0tp~n\", [begin {body} end]).\n");
        let mut command = command(caller, &[]);
        let called = async {
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut gate = child.stdin.take().expect("its input was piped");
            gate.write_all(input.as_bytes()).await?;
            drop(gate);
            child.wait_with_output().await
        };
        let output = in_time("erl_call", called).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some((value, _)) = text.split_once(VALUE).and_then(|(_, value)| value.split_once('\n')) {
            return Ok(value.to_owned());
        }
        let words = format!("{} {}", text.trim(), String::from_utf8_lossy(&output.stderr).trim());
        let gone = !output.status.success() || self.process.id().is_none();
        let kind = if gone { ErrorKind::Unavailable } else { ErrorKind::Denied };
        Err(Error::new(kind, "erl_call").with_context(words))
    }

    /// A listing of `rabbitmqctl`, such as `list(&["list_queues", "name", "messages"])`: one row of columns for each.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn list(&self, arguments: &[&str]) -> Result<Vec<Vec<String>>> {
        let (verb, columns) = arguments.split_first().expect("a listing has a name");
        let arguments: Vec<&str> = [*verb, "--no-table-headers"].iter().chain(columns).copied().collect();
        let listing = self.ctl(&arguments).await?;
        Ok(listing.lines().map(|row| row.split('\t').map(str::to_owned).collect()).collect())
    }

    /// What it holds, all virtual hosts together.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn holdings(&self) -> Result<RabbitMqHoldings> {
        let counts = self.eval(HOLDINGS).await?;
        let counts: Vec<usize> = counts
            .trim_matches(['{', '}'])
            .split(',')
            .map(|count| count.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|error| Error::new(ErrorKind::Malformed, "rabbitmqctl").with_source(error))?;
        let &[queues, bindings, consumers, connections, exchanges] = counts.as_slice() else {
            return Err(
                Error::new(ErrorKind::Malformed, "rabbitmqctl").with_context("five counts were asked for")
            );
        };
        Ok(RabbitMqHoldings { queues, bindings, consumers, connections, exchanges })
    }

    /// Makes the node believe that it has too little memory: it stops reading from connections that publish, and tells
    /// them so.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn raise_memory_alarm(&self) -> Result<()> {
        self.set_watermark(WATERMARK_OF_ALARM).await
    }

    /// Ends [`raise_memory_alarm`](RabbitMq::raise_memory_alarm).
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn clear_memory_alarm(&self) -> Result<()> {
        self.set_watermark(WATERMARK).await
    }

    /// Makes the node believe that its disk is full, with the same effect.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn raise_disk_alarm(&self) -> Result<()> {
        self.set_free_disk(FREE_DISK_OF_ALARM).await
    }

    /// Ends [`raise_disk_alarm`](RabbitMq::raise_disk_alarm).
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn clear_disk_alarm(&self) -> Result<()> {
        self.set_free_disk(FREE_DISK).await
    }

    /// As `rabbitmqctl set_vm_memory_high_watermark` does.
    async fn set_watermark(&self, share: &str) -> Result<()> {
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({share}).")).await.map(drop)
    }

    /// As `rabbitmqctl set_disk_free_limit` does.
    async fn set_free_disk(&self, bytes: &str) -> Result<()> {
        self.eval(&format!("rabbit_disk_monitor:set_disk_free_limit({bytes}).")).await.map(drop)
    }

    /// Ends all connections of clients, as an operator does.
    ///
    /// # Errors
    /// As [`ctl`](RabbitMq::ctl).
    pub async fn close_connections(&self) -> Result<()> {
        self.ctl(&["close_all_connections", "closed by the suite"]).await.map(drop)
    }
}

/// As `rabbitmqctl set_policy` does, once the node, which greets clients earlier, has started.
const EXPIRE_QUEUES_OF_LINKS: &str = r#"
    rabbit:await_startup(),
    rabbit_policy:parse_set(<<"/">>, <<"backplane">>, <<"^amq\\.gen-">>, <<"{\"expires\":2000}">>,
                            0, <<"queues">>, <<"suite">>).
"#;

/// Counts of what [`RabbitMqHoldings`] lists, in its order.
const HOLDINGS: &str = r#"
    Hosts = rabbit_vhost:list_names(),
    Sum = fun(Count) -> lists:sum([Count(Host) || Host <- Hosts]) end,
    Named = fun({resource, _, exchange, <<>>}) -> false; (_) -> true end,
    Own = fun({resource, _, exchange, <<"amq.", _/binary>>}) -> false; (Exchange) -> Named(Exchange) end,
    {Sum(fun(Host) -> length(rabbit_amqqueue:list(Host)) end),
     Sum(fun(Host) -> length([B || B <- rabbit_binding:list(Host), Named(element(2, B))]) end),
     Sum(fun(Host) -> length(rabbit_amqqueue:consumers_all(Host)) end),
     length(rabbit_networking:connections()),
     Sum(fun(Host) -> length([E || E <- rabbit_exchange:list(Host), Own(element(2, E))]) end)}.
"#;

/// Stands before a value that was evaluated.
const VALUE: &str = "value: ";

/// Runs what [`Launch`] says, with more arguments, until it is dropped.
fn command(launch: &Launch, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .args(arguments)
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .kill_on_drop(true);
    command
}

/// Awaits the end of a command.
async fn in_time(
    what: &'static str,
    output: impl Future<Output = std::io::Result<std::process::Output>>,
) -> Result<std::process::Output> {
    let output = tokio::time::timeout(bound(DEADLINE), output).await;
    let output = output.map_err(|_| Error::new(ErrorKind::Timeout, what))?;
    output.map_err(|error| Error::new(ErrorKind::Unavailable, what).with_source(error))
}

/// One of the server's scripts.
fn script(name: &str) -> Result<PathBuf> {
    let own = SCRIPTS.iter().map(|folder| Path::new(folder).join(name)).find(|script| script.is_file());
    match own {
        Some(script) => Ok(script),
        None => {
            find(name).map_err(|missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing))
        }
    }
}

/// What node and `rabbitmqctl` must agree on.
fn environment(launch: Launch, folder: &Path, node: &str, mapper: u16) -> Launch {
    launch
        .variable("HOME", folder)
        .variable("RABBITMQ_NODENAME", node)
        .variable("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .variable("ERL_EPMD_ADDRESS", Ipv4Addr::LOCALHOST.to_string())
        .variable("ERL_EPMD_PORT", mapper.to_string())
        // Also for the machines that both start only to have a mapper started.
        .variable("ERL_FLAGS", "-start_epmd false")
}

fn configuration(
    options: &RabbitMqOptions,
    address: SocketAddr,
    plain: SocketAddr,
    tls: Option<&TlsFiles>,
    password: &str,
) -> String {
    let mut lines = vec![
        format!("listeners.tcp.suite = {plain}"),
        format!("default_user = {USER}"),
        format!("default_pass = {password}"),
        "log.console = true".to_owned(),
        "log.console.level = warning".to_owned(),
        "log.file = false".to_owned(),
        format!("disk_free_limit.absolute = {FREE_DISK}"),
    ];
    if let Some(tls) = tls {
        lines.push(format!("listeners.ssl.suite = {address}"));
        lines.push(format!("ssl_options.cacertfile = {}", tls.ca.display()));
        lines.push(format!("ssl_options.certfile = {}", tls.certificate.display()));
        lines.push(format!("ssl_options.keyfile = {}", tls.key.display()));
        lines.push("ssl_options.verify = verify_none".to_owned());
        lines.push("ssl_options.fail_if_no_peer_cert = false".to_owned());
    }
    lines.extend(options.config.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}

/// Whether somebody accepts at the address and greets as the node `name`, which stands in the properties that a server
/// sends first.
async fn greets(address: SocketAddr, name: &[u8]) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    // One octet of type, two of channel, four of size.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [_, _, _, size @ ..] = head;
    let mut greeting = vec![0; u32::from_be_bytes(size).min(64 * 1024) as usize];
    stream.read_exact(&mut greeting).await?;
    Ok(greeting.windows(name.len()).any(|window| window == name))
}

/// The port for the distribution of Erlang is refused in words of its own.
fn is_port_of_node_taken(error: &Error) -> bool {
    let words = error.context().unwrap_or_default();
    words.contains("eaddrinuse") || words.contains("distribution port")
}

/// Erlang takes no cookie that others may read.
fn restrict(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| failed("cannot restrict a file", error))
}

fn loopback() -> Result<SocketAddr> {
    let port = free_port().map_err(|error| failed("no free port", error))?;
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

fn failed(what: &'static str, source: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "start").with_context(what).with_source(source)
}

/// As a user name or password stands in a URL.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn killed_it_comes_back_and_leaves_nothing_behind() {
        let options = RabbitMqOptions::amqp_1_0();
        let Some(rabbitmq) = RabbitMq::require(options).await else { return };
        let none = rabbitmq.holdings().await.unwrap();
        assert_eq!(
            none,
            RabbitMqHoldings { queues: 0, bindings: 0, consumers: 0, connections: 0, exchanges: 0 }
        );
        assert_eq!(
            rabbitmq.eval("Two = 1 + 1,\n{Two, <<\"two\">>, [65]}.").await.unwrap(),
            "{2,<<\"two\">>,\"A\"}"
        );
        for wrong in ["1 / 0.", "1 +", "no:such()."] {
            assert_eq!(rabbitmq.eval(wrong).await.unwrap_err().kind(), ErrorKind::Denied, "{wrong}");
        }
        assert_eq!(rabbitmq.list(&["list_vhosts", "name"]).await.unwrap(), [["/"]]);
        assert_eq!(rabbitmq.ctl(&["no-such-verb"]).await.unwrap_err().kind(), ErrorKind::Denied);
        rabbitmq.freeze().unwrap();
        rabbitmq.thaw().unwrap();
        rabbitmq.kill();
        let address = rabbitmq.address();
        assert!(std::net::TcpStream::connect(address).is_err());
        assert_eq!(rabbitmq.eval("1 + 1.").await.unwrap_err().kind(), ErrorKind::Unavailable);
        rabbitmq.restart().await.unwrap();
        assert_eq!(rabbitmq.eval("1 + 1.").await.unwrap(), "2");
        rabbitmq.stop().await;
        let folder = rabbitmq.process().folder().path().to_owned();
        let of_mapper = |(name, _): &&(std::ffi::OsString, std::ffi::OsString)| name == "ERL_EPMD_PORT";
        let port = &rabbitmq.control.environment.iter().find(of_mapper).unwrap().1;
        let mapper = SocketAddr::from((Ipv4Addr::LOCALHOST, port.to_str().unwrap().parse().unwrap()));
        drop(rabbitmq);
        assert!(!folder.exists());
        for address in [address, mapper] {
            assert!(std::net::TcpStream::connect(address).is_err(), "{address} still listens");
        }
    }
}
