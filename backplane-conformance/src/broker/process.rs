//! One server process: started in a group of its own, signalled, restarted, never left behind.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::folder::Folder;
use crate::report::bound;

/// How often a condition outside this process is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// A busy machine may take a while to stop a process that computes.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long an orderly end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How much of a server's output stands in an error.
const TAIL: u64 = 2_000;

/// Waits for one line, so that the server does not run before it is watched, then becomes it. When the test process
/// dies in between, the input ends and it never runs.
const GATE: &str = r#"read -r _ && exec "$0" "$@" </dev/null"#;

/// How to run a server.
#[derive(Clone, Debug)]
pub struct Launch {
    /// How errors call it.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// How long it may take until it accepts, or longer where [`bound`] says so. Default 10 s (RabbitMQ needs 3).
    pub deadline: Duration,
}

impl Launch {
    /// `program`, without arguments.
    #[must_use]
    pub fn new(name: &'static str, program: PathBuf) -> Self {
        let deadline = Duration::from_secs(10);
        Self { name, program, arguments: Vec::new(), environment: Vec::new(), deadline }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }
}

/// A server that may run, be frozen, or be down. It writes its output into a file of its folder, which is also where
/// it runs.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    running: Mutex<Option<Running>>,
    folder: Folder,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Where its own output begins in the file that it shares with earlier runs.
    output_from: u64,
}

impl Process {
    /// A server that does not run yet.
    #[must_use]
    pub fn new(launch: Launch, folder: Folder) -> Self {
        Self { launch, running: Mutex::new(None), folder }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.running.lock().as_ref().map(|running| running.child.id())
    }

    /// Runs it (a run before is killed) and asks `accepts`, given its process id, again and again until it says yes.
    ///
    /// `accepts` has to make sure that it talks to that very process: somebody else may have taken the port.
    ///
    /// # Errors
    /// [`StartError`]; the process is gone then.
    pub async fn start<F>(&self, accepts: impl Fn(u32) -> F + Send) -> Result<(), StartError>
    where
        F: Future<Output = bool> + Send,
    {
        self.kill();
        let deadline = Instant::now() + bound(self.launch.deadline);
        let id = self.spawn()?;
        loop {
            if let Some(status) = self.exited() {
                return Err(self.refused(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, accepts(id)).await.unwrap_or(false) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.gave_up().into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn gave_up(&self) -> Error {
        let output = self.output();
        self.kill();
        let Launch { name, deadline, .. } = &self.launch;
        let deadline = bound(*deadline);
        let context = format!("{name} did not accept within {deadline:?}; its output ends: {output}");
        Error::new(ErrorKind::Timeout, "start").with_context(context)
    }

    fn spawn(&self) -> Result<u32> {
        let cannot = |error| {
            let context = format!("cannot run {}", self.launch.program.display());
            Error::new(ErrorKind::Unavailable, "start").with_context(context).with_source(error)
        };
        let output = OpenOptions::new().create(true).append(true).open(self.output_path()).map_err(cannot)?;
        let output_from = output.metadata().map_err(cannot)?.len();
        let mut child = Command::new("/bin/sh")
            .args(["-c", GATE])
            .arg(&self.launch.program)
            .args(&self.launch.arguments)
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(cannot)?)
            .stderr(output)
            .spawn()
            .map_err(cannot)?;
        let mut gate = child.stdin.take().expect("its input was piped");
        let id = child.id();
        // Stored before anything can fail: whatever happens, it is killed on drop.
        *self.running.lock() = Some(Running { child, output_from });
        self.folder.watch(id)?;
        gate.write_all(b"go\n").map_err(cannot)?;
        Ok(id)
    }

    /// Its end, if it ended by itself.
    fn exited(&self) -> Option<ExitStatus> {
        let mut running = self.running.lock();
        running.as_mut()?.child.try_wait().expect("a child of ours that was not waited for can be")
    }

    fn refused(&self, status: ExitStatus) -> StartError {
        let output = self.output();
        self.kill();
        let port_taken = output.to_lowercase().contains("address already in use");
        let context = format!("{} ended ({status}); its output ends: {output}", self.launch.name);
        let error = Error::new(ErrorKind::InvalidConfig, "start").with_context(context);
        if port_taken { StartError::PortTaken(error) } else { StartError::Failed(error) }
    }

    fn output_path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.log", self.launch.name))
    }

    /// The end of what this run wrote to its standard output and error.
    #[must_use]
    pub fn output(&self) -> String {
        let from = self.running.lock().as_ref().map_or(0, |running| running.output_from);
        let mut text = Vec::new();
        let read = File::open(self.output_path()).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL))))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).trim().to_owned(),
            Err(error) => format!("(no output: {error})"),
        }
    }

    /// See [`Broker::kill`](super::Broker::kill).
    pub fn kill(&self) {
        if let Some(mut running) = self.running.lock().take() {
            signal(&running.child, Signal::KILL);
            self.bury(&mut running);
        }
    }

    fn bury(&self, running: &mut Running) {
        // Not waiting would leave a zombie; it was killed or has ended, so this does not block for long.
        let _ = running.child.wait();
        // Without a guard there is nothing to tell.
        let _ = self.folder.forget();
    }

    /// See [`Broker::freeze`](super::Broker::freeze). When this returns, the server's main process has stopped.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it does not run.
    pub fn freeze(&self) -> Result<()> {
        let running = self.running.lock();
        let child = &running.as_ref().ok_or_else(|| self.not_running("freeze"))?.child;
        signal(child, Signal::STOP);
        let deadline = Instant::now() + FREEZE_DEADLINE;
        let stopped = || {
            let look = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(pid(child)), look).is_ok_and(|status| status.is_some())
        };
        while !stopped() {
            if Instant::now() > deadline {
                let what = format!("{} was not stopped within {FREEZE_DEADLINE:?}", self.launch.name);
                return Err(Error::new(ErrorKind::Unavailable, "freeze").with_context(what));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// See [`Broker::thaw`](super::Broker::thaw).
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it does not run.
    pub fn thaw(&self) -> Result<()> {
        let running = self.running.lock();
        signal(&running.as_ref().ok_or_else(|| self.not_running("thaw"))?.child, Signal::CONT);
        Ok(())
    }

    fn not_running(&self, operation: &'static str) -> Error {
        Error::new(ErrorKind::Unavailable, operation)
            .with_context(format!("{} does not run", self.launch.name))
    }

    /// See [`Broker::stop`](super::Broker::stop). A frozen one is thawed for it.
    pub async fn stop(&self) {
        if let Some(running) = self.running.lock().as_ref() {
            signal(&running.child, Signal::TERM);
            signal(&running.child, Signal::CONT);
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.id().is_some() && self.exited().is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        // Whatever is left of the group goes too.
        self.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Signals the whole group of a child that was not waited for yet, so that its number is still its own.
fn signal(child: &Child, signal: Signal) {
    // The only failure is that nobody is left in the group, which every caller takes for done.
    let _ = kill_process_group(pid(child), signal);
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// Somebody else listens on its port: another one may do.
    PortTaken(Error),
    /// Anything else. [`InvalidConfig`](ErrorKind::InvalidConfig): it ended by itself;
    /// [`Timeout`](ErrorKind::Timeout): it did not accept in time; both with the end of its output.
    /// [`Unavailable`](ErrorKind::Unavailable): it could not be run.
    Failed(Error),
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::PortTaken(error) | StartError::Failed(error) => error,
        }
    }
}
