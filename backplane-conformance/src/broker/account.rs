//! As whom a server runs that refuses to run as root.

use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use backplane_core::{Error, ErrorKind, Result};

use super::process::Launch;
use super::require::find;

/// An account of this machine without special rights.
#[derive(Clone, Debug)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
    setpriv: PathBuf,
}

impl Account {
    /// The one that a server needs which refuses to run as root: the account `name`, made by its package. `None`: we are
    /// not root, and it runs as we do.
    pub(super) fn instead_of_root(name: &str) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let unsupported = |context: String| Error::new(ErrorKind::Unsupported, "start").with_context(context);
        let accounts = std::fs::read_to_string("/etc/passwd").map_err(|error| {
            unsupported("cannot read the accounts of this machine".into()).with_source(error)
        })?;
        let account = accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        });
        let (uid, gid) = account.ok_or_else(|| {
            unsupported(format!("it refuses to run as root, and there is no account `{name}`"))
        })?;
        let setpriv = find("setpriv")
            .map_err(|missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing))?;
        Ok(Some(Self { uid, gid, setpriv }))
    }

    /// The command that becomes `program` as this account.
    pub(super) fn command(&self) -> (PathBuf, Vec<OsString>) {
        let arguments = [
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            "--clear-groups".to_owned(),
            "--".to_owned(),
        ];
        (self.setpriv.clone(), arguments.map(OsString::from).into())
    }

    /// Gives it a file or folder.
    pub(super) fn give(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid)).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "start")
                .with_context(format!("cannot give {} to the server's account", path.display()))
                .with_source(error)
        })
    }
}

/// How `program` is launched: as `account`, when there is one.
pub(super) fn launch_as(account: Option<&Account>, name: &'static str, program: PathBuf) -> Launch {
    let Some(account) = account else { return Launch::new(name, program) };
    let (setpriv, arguments) = account.command();
    let launch = arguments.into_iter().fold(Launch::new(name, setpriv), Launch::argument);
    launch.argument(program)
}
