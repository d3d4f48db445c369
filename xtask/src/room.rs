//! Whether the machine has room for a test run: free disk, and memory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// What a run from a clean clone takes, with some to spare for what the brokers write.
const WANTED_DISK: u64 = 6 << 30;

/// With less, programs fail for reasons of their own: what is said of the failure is then seldom the cause.
const FULL_DISK: u64 = 512 * MIB;

/// As above.
const FULL_MEMORY: u64 = 256 * MIB;

const INTERVAL: Duration = Duration::from_secs(2);

/// What is left, in bytes; `u64::MAX` where the machine does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    disk: u64,
    memory: u64,
}

impl Room {
    fn now(folders: &[PathBuf]) -> Self {
        let disk = folders.iter().filter_map(|folder| free_disk(folder)).min().unwrap_or(u64::MAX);
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
        Self { disk, memory: memory.unwrap_or(u64::MAX) }
    }

    fn least(self, other: Self) -> Self {
        Self { disk: self.disk.min(other.disk), memory: self.memory.min(other.memory) }
    }

    /// What to say of it before a run.
    fn before(self) -> String {
        let mut words = format!("{self} to begin with");
        if self.disk < WANTED_DISK {
            words += &format!("; a run from a clean clone takes up to {} MiB of disk", WANTED_DISK / MIB);
        }
        words
    }

    /// What to say of the least there was.
    pub(crate) fn after(self) -> String {
        let mut words = format!("{self} at the least");
        if self.disk < FULL_DISK || self.memory < FULL_MEMORY {
            words += ": THE MACHINE WAS FULL, and whatever failed may have failed for that; make room and run again";
        }
        words
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| match bytes {
            u64::MAX => "unknown".to_owned(),
            bytes => format!("{} MiB", bytes / MIB),
        };
        write!(f, "free: {} of disk, {} of memory", mib(self.disk), mib(self.memory))
    }
}

/// Looks every two seconds until it is asked for what it saw.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: mpsc::Sender<()>,
    watcher: JoinHandle<Room>,
}

impl Watch {
    /// Watches the disks of what is built under `root` and of temporary files; says what there is now.
    pub(crate) fn start(root: &Path) -> Self {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(|folder| root.join(folder));
        let folders: Vec<PathBuf> =
            [root.to_owned(), std::env::temp_dir()].into_iter().chain(target).collect();
        let mut least = Room::now(&folders);
        println!("{}", least.before());
        let (stop, stopped) = mpsc::channel::<()>();
        let watcher = std::thread::spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                least = least.least(Room::now(&folders));
            }
            least.least(Room::now(&folders))
        });
        Self { stop, watcher }
    }

    /// The least there was.
    pub(crate) fn stop(self) -> Room {
        drop(self.stop);
        self.watcher.join().expect("a watcher does nothing that could panic")
    }
}

/// For programs without privileges.
fn free_disk(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Of proc(5), `meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_machine_is_said_to_be_full() {
        let room = |disk, memory| Room { disk: disk * MIB, memory: memory * MIB };
        assert!(!room(600, 300).after().contains("FULL"));
        assert!(room(500, 300).after().contains("FULL"));
        assert!(room(600, 200).after().contains("FULL"));
        assert_eq!(room(9, 2).least(room(3, 7)), room(3, 2));
        assert!(room(5_000, 300).before().ends_with("takes up to 6144 MiB of disk"));
    }

    #[test]
    fn this_machine_has_a_disk_and_memory() {
        let room = Room::now(&[std::env::temp_dir()]);
        assert!(room.disk < u64::MAX, "{room:?}");
        assert_eq!(room.memory < u64::MAX, cfg!(target_os = "linux"), "{room:?}");
        assert!(Room { memory: u64::MAX, ..room }.to_string().ends_with("unknown of memory"));
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    3 kB\n"), Some(3 * 1024));
    }
}
