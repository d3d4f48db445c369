//! Which file it is, and on what kind of file system.

use std::path::{Path, PathBuf};

use backplane_core::{Error, ErrorKind, Result};

/// A file, told apart from another one that later has its name.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl LogFile {
    /// The one that has this name now.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let identity = identity(path).map_err(|error| gone("connect", path, Some(error)))?;
        Ok(Self { path: path.to_owned(), identity })
    }

    /// Fails when the name means another file, or none. What is written into a file without a name reaches nobody who
    /// comes later.
    ///
    /// Asks the file system, which is a local one: that takes a microsecond, and is done in place.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        match identity(&self.path) {
            Ok(identity) if identity == self.identity => Ok(()),
            Ok(_) => Err(gone(operation, &self.path, None)),
            Err(error) => Err(gone(operation, &self.path, Some(error))),
        }
    }
}

fn gone(operation: &'static str, path: &Path, error: Option<std::io::Error>) -> Error {
    let gone = Error::new(ErrorKind::Unavailable, operation);
    match error {
        Some(error) => gone.with_context(format!("{} is gone", path.display())).with_source(error),
        None => gone.with_context(format!("{} was replaced by another file", path.display())),
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = std::fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    // An open file cannot be replaced there; one that was made later was made at another time.
    let made = std::fs::metadata(path)?.created()?;
    let since = made.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok((since.as_secs(), since.subsec_nanos().into()))
}

/// For `create=false`.
pub(super) fn must_exist(path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let context =
        format!("{} is not there: install schema/sqlite.sql, or let `create` be true", path.display());
    Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context))
}

/// Refuses file systems that are known to reach over a network: their locks and their shared memory do not work as SQLite
/// needs it, and the file would be damaged. Where the kind is not known, nothing is refused.
pub(super) fn refuse_network(path: &Path) -> Result<()> {
    match network(path) {
        Some(kind) => {
            let context = format!(
                "{} lies on a network file system ({kind}); SQLite serves the processes of one host, on a local disk",
                path.display()
            );
            Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context))
        }
        None => Ok(()),
    }
}

#[cfg(target_os = "linux")]
fn network(path: &Path) -> Option<&'static str> {
    // The file may not be there yet.
    let on =
        [Some(path), path.parent()].into_iter().flatten().find_map(|path| rustix::fs::statfs(path).ok())?;
    // The kernel's numbers have 32 bits, in a field whose width and sign differ between machines.
    network_kind((i128::from(on.f_type) & 0xffff_ffff).try_into().ok()?)
}

#[cfg(not(target_os = "linux"))]
fn network(_path: &Path) -> Option<&'static str> {
    None
}

/// By the number that the kernel gives each kind of file system (statfs(2)).
#[cfg(any(target_os = "linux", test))]
fn network_kind(number: u32) -> Option<&'static str> {
    Some(match number {
        0x6969 => "NFS",
        0x517b | 0xfe53_4d42 | 0xff53_4d42 => "SMB",
        0x564c => "NCP",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x7461_636f => "OCFS2",
        0x0116_1970 => "GFS2",
        0x1983_0326 => "BeeGFS",
        0x786f_4256 => "a shared folder of VirtualBox",
        _ => return None,
    })
}

#[cfg(test)]
mod units {
    use super::*;

    #[test]
    fn network_file_systems_are_known_and_the_local_one_is_none() {
        assert_eq!(network_kind(0x6969), Some("NFS"));
        assert_eq!(network_kind(0xff53_4d42), Some("SMB"));
        for local in [0xef53, 0x9123_683e, 0x0102_1994, 0x5846_5342, 0x794c_7630, 0x2fc1_2fc1] {
            assert_eq!(network_kind(local), None, "{local:x}");
        }
        let folder = tempfile::tempdir().unwrap();
        refuse_network(&folder.path().join("not-there-yet")).unwrap();
    }

    #[test]
    fn a_file_that_was_replaced_or_deleted_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(LogFile::of(&path).is_err());
        std::fs::write(&path, "1").unwrap();
        let file = LogFile::of(&path).unwrap();
        std::fs::write(&path, "2").unwrap();
        file.check("read").unwrap();
        std::fs::write(folder.path().join("b"), "1").unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        assert!(file.check("read").unwrap_err().to_string().contains("replaced"));
        std::fs::remove_file(&path).unwrap();
        assert!(file.check("read").unwrap_err().to_string().contains("gone"));
    }
}
