//! A temporary folder, and the guard that clears up when the test process dies without a chance to do so.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use backplane_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Reads what to watch from its input. When the input ends without `done`, whoever held the other end is dead, by
/// whatever signal: the kernel closes pipes of the dead. A parent-death signal would do less (it leaves the folder)
/// and more (it fires when the spawning *thread* ends, and test threads do end).
///
/// A server's children may be in groups of their own, and stopped: they are known by running in the folder.
const GUARD: &str = r#"
group=
while read -r verb argument; do
    case $verb in
        watch) group=$argument ;;
        forget) group= ;;
        done) exit 0 ;;
    esac
done
if [ -n "$group" ]; then
    kill -s KILL -- "-$group"
    for own in /proc/[0-9]*/cwd; do
        case $(readlink "$own") in
            "$0"|"$0"/*) own=${own%/cwd}; kill -s KILL "${own#/proc/}" ;;
        esac
    done
fi
rm -rf -- "$0" || { sleep 1; rm -rf -- "$0"; }
"#;

/// A temporary folder of one broker. Removed when dropped, and also when this process is killed.
#[derive(Debug)]
pub struct Folder {
    guard: Mutex<Guard>,
    folder: TempDir,
}

#[derive(Debug)]
struct Guard {
    process: Child,
    orders: ChildStdin,
}

impl Folder {
    /// A new one whose name starts with `name`.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when the folder cannot be made or `/bin/sh` cannot be run.
    pub fn new(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("backplane-{name}-"))
            .tempdir()
            .map_err(|error| failed("cannot make a temporary folder", error))?;
        let mut process = Command::new("/bin/sh")
            .args(["-c", GUARD])
            .arg(folder.path())
            .current_dir("/")
            // Its own group: an interrupt from the terminal must reach the tests and spare the guard.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed("cannot run /bin/sh", error))?;
        let orders = process.stdin.take().expect("its input was piped");
        Ok(Self { guard: Mutex::new(Guard { process, orders }), folder })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into it.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<std::path::PathBuf> {
        let path = self.path().join(name);
        std::fs::write(&path, content).map_err(|error| failed("cannot write a file", error))?;
        Ok(path)
    }

    /// From now on the process group `group` dies with this process.
    pub(super) fn watch(&self, group: u32) -> Result<()> {
        self.order(&format!("watch {group}\n"))
    }

    /// The watched group is gone; its number may soon be somebody else's.
    pub(super) fn forget(&self) -> Result<()> {
        self.order("forget\n")
    }

    fn order(&self, line: &str) -> Result<()> {
        let mut guard = self.guard.lock();
        guard.orders.write_all(line.as_bytes()).map_err(|error| failed("the guard is gone", error))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let guard = self.guard.get_mut();
        if guard.orders.write_all(b"done\n").is_err() {
            // Somebody killed it; it is only left to be buried.
            let _ = guard.process.kill();
        }
        let _ = guard.process.wait();
    }
}

fn failed(what: &'static str, source: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "start").with_context(what).with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_folder_is_removed() {
        let folder = Folder::new("test").unwrap();
        let file = folder.write("a", "b").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"b");
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }
}
