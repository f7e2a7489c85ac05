//! Processes of our own: each in its own group, ended with everything that it started, and never outliving us.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Groups that run now, for the handler of Ctrl-C: a terminal signals only our own group.
static LIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn live<R>(action: impl FnOnce(&mut Vec<Pid>) -> R) -> R {
    action(&mut LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Ends every group when this program is interrupted or told to end.
pub fn end_groups_on_interrupt() {
    let result = ctrlc::set_handler(|| {
        live(|groups| {
            for group in groups.iter() {
                let _ = kill_process_group(*group, Signal::KILL);
            }
        });
        std::process::exit(130);
    });
    if result.is_err() {
        eprintln!("Ctrl-C cannot be handled; a QEMU may stay behind");
    }
}

/// A process and whatever it started.
#[derive(Debug)]
pub struct Group {
    child: Child,
    pid: Option<Pid>,
}

impl Group {
    /// Starts `command` as the leader of a new group.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        // Under the lock, so that the handler cannot miss a group that is just being made.
        live(|groups| {
            let child = command.process_group(0).spawn()?;
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            groups.extend(pid);
            Ok(Self { child, pid })
        })
    }

    /// The leader, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The leader's exit status if it ended; what is left of its group ends with it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(pid) = self.pid else {
            return self.child.try_wait();
        };
        // Looked at without reaping: until then the number cannot come to belong to somebody else.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(pid), options)?.is_none() {
            return Ok(None);
        }
        self.kill()
    }

    /// Waits for the leader until `deadline`.
    pub fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the group at once. Gives the leader's exit status, `None` if it is long gone.
    pub fn kill(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(pid) = self.pid.take() else {
            return self.child.try_wait();
        };
        // The handler must not see the number once it is reaped.
        live(|groups| {
            groups.retain(|group| *group != pid);
            let _ = kill_process_group(pid, Signal::KILL);
            self.child.wait().map(Some)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_group_takes_its_children_along() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]).stdout(std::process::Stdio::piped());
        let mut group = Group::spawn(&mut command).unwrap();
        let mut stdout = group.child().stdout.take().unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut stdout, &mut byte).unwrap();
        group.kill().unwrap();
        // The pipe closes only when the grandchild is gone as well.
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut stdout, &mut rest).unwrap();
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let mut group = Group::spawn(Command::new("sleep").arg("600")).unwrap();
        let status = group.wait_until(Instant::now() + Duration::from_millis(20)).unwrap();
        assert!(status.is_none());
    }
}
