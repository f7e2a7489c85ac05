//! A running machine with its console and its endpoints, and what the tests ask of them.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::disk::DiskCopy;
use crate::endpoint::{Answer, Link, Preload, Socket, Start, Tag, library};
use crate::profile::{Endpoint, Profile};
use crate::prompt::Prompt;
use crate::run::Lab;
use crate::session::{Gone, Input, Line, Session};

/// Only a QEMU that hangs takes this long to begin.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Only a lost interrupt keeps a fault away for so long.
const FAULT_LIMIT: Duration = Duration::from_secs(60);

/// A machine.
pub(crate) struct Rig {
    prompt: Prompt,
    /// The endpoints.
    pub(crate) link: Link,
    endpoints: Vec<Endpoint>,
    success_status: i32,
    // Goes when the machine is gone.
    _disk: DiskCopy,
}

/// What came of starting one.
pub(crate) enum Started {
    Ready(Box<Rig>),
    /// The endpoints cannot be had here, and why.
    Unusable(String),
}

/// A frame of the console's.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    name: String,
    /// Its physical address.
    pub(crate) phys: u64,
}

impl Rig {
    /// Boots a machine with endpoints into its console.
    pub(crate) fn start(lab: &Lab, profile: &Profile, name: &str) -> Result<Started> {
        Self::boot(lab, profile, name, &lab.kernel(profile.arch), &[])
    }

    /// As [`start`](Self::start), with another kernel, and further arguments for QEMU.
    pub(crate) fn boot(
        lab: &Lab,
        profile: &Profile,
        name: &str,
        kernel: &Path,
        arguments: &[&str],
    ) -> Result<Started> {
        let library = match library::ensure(&lab.workspace) {
            Ok(library) => library,
            Err(error) => return Ok(Started::Unusable(format!("{error:#}"))),
        };
        let socket = Socket::new()?;
        let preload = Preload { library, socket: socket.path() };
        let disk = lab.image.copy(name)?;
        let mut command = lab.command_with_endpoints(profile, kernel, disk.path(), "shell", &preload)?;
        command.args(arguments);
        let log = lab.workspace.log_dir().join(format!("{name}.log"));
        let mut session = Session::start(command, Input::Commands, &log)?;
        let Some(mut link) = connect(&socket, &mut session)? else {
            return Ok(Started::Unusable(format!("QEMU does not load {}", preload.library.display())));
        };
        if let Start::Unusable(why) = link.self_test()? {
            return Ok(Started::Unusable(why));
        }
        let prompt = Prompt::open(session).map_err(anyhow::Error::msg)?;
        Ok(Started::Ready(Box::new(Self {
            prompt,
            link,
            endpoints: lab.profiles.endpoints().to_vec(),
            success_status: profile.arch.success_status(),
            _disk: disk,
        })))
    }

    /// Switches off, and says what is wrong with that.
    pub(crate) fn power_off(self) -> Result<Option<String>> {
        self.prompt.power_off(self.success_status)
    }

    /// The name of an endpoint for the link, and its place for the console.
    pub(crate) fn endpoint(&self, number: usize) -> Result<(String, String)> {
        let endpoint = self.endpoints.get(number).context("the profile has too few endpoints")?;
        Ok((endpoint.id.clone(), endpoint.place.clone()))
    }

    /// Types a command that has to succeed; the answer without its `ok`.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Vec<String>> {
        let mut lines = self.answer(command)?;
        let closing = lines.pop().unwrap_or_default();
        ensure!(closing == "ok", "`{command}` was answered with `{closing}`");
        Ok(lines)
    }

    /// Types a command that has to fail for this reason.
    pub(crate) fn ask_in_vain(&mut self, command: &str, reason: &str) -> Result<()> {
        let closing = self.answer(command)?.pop().unwrap_or_default();
        let refused = closing.strip_prefix("error:").is_some_and(|error| error.contains(reason));
        ensure!(refused, "`{command}` was answered with `{closing}`, not an error with `{reason}`");
        Ok(())
    }

    fn answer(&mut self, command: &str) -> Result<Vec<String>> {
        match self.prompt.ask(command)? {
            Ok(lines) => Ok(lines),
            Err(why) => bail!("`{command}`: {why}"),
        }
    }

    /// Makes a domain.
    pub(crate) fn domain(&mut self) -> Result<String> {
        let lines = self.ask("domain new paging")?;
        let name = lines.iter().find_map(|line| line.strip_prefix("domain: "));
        Ok(name.context("the console names no domain")?.to_owned())
    }

    /// Maps a fresh frame, zeroed.
    pub(crate) fn map(&mut self, domain: &str, address: u64, access: &str) -> Result<Frame> {
        frame(&self.ask(&format!("map {domain} {address:#x} alloc 4K {access}"))?)
    }

    /// Sets memory aside whose pages the kernel maps when they are asked for.
    pub(crate) fn pager(
        &mut self,
        place: &str,
        pasid: u32,
        domain: &str,
        address: u64,
        size: u64,
        access: &str,
    ) -> Result<Frame> {
        frame(&self.ask(&format!("pager {place} {pasid:#x} {domain} {address:#x} {size:#x} {access}"))?)
    }

    /// Unmaps a page.
    pub(crate) fn unmap(&mut self, domain: &str, address: u64) -> Result<()> {
        self.ask(&format!("unmap {domain} {address:#x} 4K")).map(drop)
    }

    /// Up to 64 bytes of a frame, as the CPU sees them.
    pub(crate) fn peek(&mut self, frame: &Frame, offset: u64, size: u64) -> Result<Vec<u8>> {
        let lines = self.ask(&format!("peek {} {offset} {size}", frame.name))?;
        let bytes = lines.iter().find_map(|line| line.strip_prefix("bytes: ")).context("no bytes")?;
        Ok(bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?)
    }

    /// Switches features on, bus mastering included.
    pub(crate) fn enable(&mut self, place: &str, features: &str) -> Result<()> {
        self.ask(&format!("enable {place} {features}")).map(drop)
    }

    /// Attaches a PASID; what the console says about the way there.
    pub(crate) fn attach(&mut self, place: &str, pasid: u32, domain: &str) -> Result<String> {
        let lines = self.ask(&format!("attach-pasid {place} {pasid:#x} {domain}"))?;
        let transition = lines.iter().find_map(|line| line.strip_prefix("attached: "));
        Ok(transition.context("nothing is said of the attachment")?.to_owned())
    }

    /// Detaches a PASID.
    pub(crate) fn detach(&mut self, place: &str, pasid: u32) -> Result<()> {
        self.ask(&format!("detach-pasid {place} {pasid:#x}")).map(drop)
    }

    /// Takes the faults out of the log, and gives those of the endpoints.
    fn take_faults(&mut self) -> Result<Vec<String>> {
        let lines = self.ask("faults")?;
        let names_endpoint = |fault: &&str| {
            self.endpoints.iter().any(|endpoint| fault.contains(&format!(" 0000:{} ", endpoint.place)))
        };
        let faults = lines.iter().filter_map(|line| line.strip_prefix("fault: ")).filter(names_endpoint);
        Ok(faults.map(str::to_owned).collect())
    }

    /// Nothing was refused.
    pub(crate) fn no_fault(&mut self) -> Result<()> {
        let faults = self.take_faults()?;
        ensure!(faults.is_empty(), "unexpected: {}", faults.join("; "));
        Ok(())
    }

    /// Exactly one request was refused, and its record, which is returned, has all these words.
    pub(crate) fn one_fault(&mut self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + FAULT_LIMIT;
        let mut faults = self.take_faults()?;
        while faults.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
            faults = self.take_faults()?;
        }
        let [fault] = &faults[..] else {
            bail!("{} faults instead of one: {}", faults.len(), faults.join("; "));
        };
        let missing: Vec<&&str> = words.iter().filter(|word| !fault.contains(**word)).collect();
        ensure!(missing.is_empty(), "the fault `{fault}` lacks {missing:?}");
        Ok(fault.clone())
    }

    /// An access by an endpoint is blocked, with a record that names the requester, the PASID and the address.
    pub(crate) fn blocked(&mut self, endpoint: usize, pasid: u32, address: u64) -> Result<()> {
        let (id, place) = self.endpoint(endpoint)?;
        let answer = self.link.write(&id, Tag::Pasid(pasid), address, &[0xee])?;
        ensure!(answer == Answer::Fault, "a write with PASID {pasid:#x} to {address:#x}: {answer:?}");
        let fault = self.one_fault(&[&format!("{place} "), &format!(" write at {address:#x} ")])?;
        // QEMU cuts the PASID to 16 bits.
        let names = |pasid: u32| fault.contains(&format!(" pasid {pasid:#x} "));
        ensure!(names(pasid) || names(pasid & 0xffff), "the fault `{fault}` does not name PASID {pasid:#x}");
        Ok(())
    }

    /// An access with a PASID that is attached nowhere is blocked. QEMU's record of that has no PASID.
    pub(crate) fn unattached(&mut self, endpoint: usize, pasid: u32, address: u64) -> Result<()> {
        let (id, place) = self.endpoint(endpoint)?;
        let answer = self.link.write(&id, Tag::Pasid(pasid), address, &[0xee])?;
        ensure!(answer == Answer::Fault, "a write with PASID {pasid:#x} to {address:#x}: {answer:?}");
        self.one_fault(&[&format!("{place} "), &format!(" write at {address:#x} ")]).map(drop)
    }

    /// A write reaches the frame that it is meant for.
    pub(crate) fn arrives(&mut self, endpoint: usize, tag: Tag, address: u64, frame: &Frame) -> Result<()> {
        let (id, _) = self.endpoint(endpoint)?;
        let old = self.peek(frame, address % 4096, 4)?;
        // Never what is there.
        let bytes: Vec<u8> = old.iter().map(|byte| byte.wrapping_add(0x5b)).collect();
        done(self.link.write(&id, tag, address, &bytes)?, "a write")?;
        let found = self.peek(frame, address % 4096, 4)?;
        ensure!(found == bytes, "{address:#x} with {tag}: {bytes:x?} were written, {found:x?} are in memory");
        let read = done(self.link.read(&id, tag, address, 4)?, "a read")?;
        ensure!(read == bytes, "{address:#x} with {tag}: {bytes:x?} are in memory, {read:x?} were read");
        Ok(())
    }
}

/// The frame that the console speaks of: `WORD: NAME phys=ADDRESS ...`.
fn frame(lines: &[String]) -> Result<Frame> {
    let words = lines.iter().find_map(|line| line.split_once(": f")).context("no frame is named")?.1;
    let phys = words.split(' ').find_map(|word| word.strip_prefix("phys=0x"));
    let phys = u64::from_str_radix(phys.context("no address is told")?, 16)?;
    Ok(Frame { name: format!("f{}", words.split(' ').next().unwrap_or_default()), phys })
}

/// What was done, or an error that says what was not.
pub(crate) fn done<T>(answer: Answer<T>, what: &str) -> Result<T> {
    match answer {
        Answer::Done(value) => Ok(value),
        Answer::Fault => bail!("{what} ended in a fault"),
        Answer::Refused(why) => bail!("{what} was refused by the endpoint: {why}"),
    }
}

/// The endpoint itself does not do it, for this reason.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Answer<T>, reason: &str) -> Result<()> {
    ensure!(
        matches!(&answer, Answer::Refused(why) if why.contains(reason)),
        "{answer:?} where `{reason}` is a reason to refuse"
    );
    Ok(())
}

/// The library connects before QEMU's main function; so a console that speaks without it has none.
fn connect(socket: &Socket, session: &mut Session) -> Result<Option<Link>> {
    let end = Instant::now() + START_LIMIT;
    while Instant::now() < end {
        if let Some(link) = socket.accept()? {
            return Ok(Some(link));
        }
        match session.next(Instant::now() + Duration::from_millis(10)) {
            Ok(Some(Line::Console(_))) => return socket.accept(),
            Ok(_) => {}
            Err(Gone) => bail!("QEMU ended at once"),
        }
    }
    bail!("QEMU did not start in {} s", START_LIMIT.as_secs())
}
