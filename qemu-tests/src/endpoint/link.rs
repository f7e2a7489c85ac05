//! The connection to the endpoints: typed commands, typed answers. `qemu-tests/preload/README.md` has the words.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// Only a QEMU that hangs takes this long to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A longer line is a mistake.
const MAX_LINE: u64 = 128 * 1024;

/// Where the harness listens for a QEMU that is about to start. Goes with the value.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    folder: PathBuf,
}

impl Socket {
    /// A new place. It is in the system's directory for temporary files, as the length of a socket's path is limited.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("portcullis-{}-{number}", std::process::id()));
        // Nobody else may answer for QEMU.
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let bound = UnixListener::bind(folder.join("socket"));
        let listener = bound.with_context(|| format!("cannot listen in {}", folder.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, folder })
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The connection, if QEMU has made it.
    pub fn accept(&self) -> Result<Option<Link>> {
        match self.listener.accept() {
            Ok((stream, _)) => Link::new(stream).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("cannot accept QEMU's connection"),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What the library says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// All works.
    Ready,
    /// This QEMU or machine cannot have such endpoints, and why.
    Unusable(String),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It was done.
    Done(T),
    /// The IOMMU did not let it.
    Fault,
    /// The endpoint did not try, and why: what it needs is not switched on.
    Refused(String),
}

/// What a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// No PASID.
    Plain,
    /// This PASID.
    Pasid(u32),
}

/// What a translation request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A translation for reads; it may allow writes too.
    Read,
    /// One for reads and writes.
    ReadWrite,
}

/// A translation that the endpoint got and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The first address that it is for.
    pub address: u64,
    /// What that is translated to.
    pub translated: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it is good for writes.
    pub writable: bool,
}

/// A range that the endpoint was told to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// Whose translations.
    pub tag: Tag,
    /// The first address.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// A page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Whose page.
    pub tag: Tag,
    /// An address in it.
    pub address: u64,
    /// Letters: `r`ead, `w`rite, e`x`ecute, `p`rivileged; `-` for none, which makes a stop marker of a last request.
    pub access: &'static str,
    /// The group, 0 to 511.
    pub group: u16,
    /// Whether the group is complete.
    pub last: bool,
}

/// How the unit answered a group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The pages are there.
    Success,
    /// They cannot be there.
    Invalid,
    /// It did not work out, and the endpoint shall not ask again.
    Failure,
}

/// A response to a group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Whose pages.
    pub tag: Tag,
    /// The group.
    pub group: u16,
    /// What became of it.
    pub code: Code,
}

/// What became of writes that went on until they were stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writes {
    /// How many words were written: 1, 2, 3 ... up to this, in turn to eight places.
    pub done: u64,
    /// How many the IOMMU did not let.
    pub faults: u64,
    /// How many the endpoint did not try.
    pub refused: u64,
}

/// What is switched on in an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Bus mastering.
    pub master: bool,
    /// PASIDs.
    pub pasid: bool,
    /// Translation requests.
    pub ats: bool,
    /// Page requests.
    pub pri: bool,
    /// Page requests that wait for a response.
    pub outstanding: u32,
}

/// The connection to a QEMU's endpoints.
#[derive(Debug)]
pub struct Link {
    input: UnixStream,
    output: BufReader<UnixStream>,
}

impl Link {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { output: BufReader::new(stream.try_clone()?), input: stream })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.by_ref().take(MAX_LINE).read_line(&mut line).context("an endpoint does not answer")?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.to_owned()),
            None => bail!("an endpoint's answer broke off after {line:?}"),
        }
    }

    /// Reads the self-test, which ends before the machine starts.
    pub fn self_test(&mut self) -> Result<Start> {
        let mut last = String::new();
        loop {
            let line = self.line()?;
            if let Some(reason) = line.strip_prefix("unusable ") {
                let detail = if last.is_empty() || last.ends_with(" ok") {
                    String::new()
                } else {
                    format!(" ({last})")
                };
                return Ok(Start::Unusable(format!("{reason}{detail}")));
            }
            match line.strip_prefix("test ") {
                Some(test) => last = test.to_owned(),
                None if line == "ready" => return Ok(Start::Ready),
                None => bail!("unexpected line {line:?} in the endpoints' self-test"),
            }
        }
    }

    /// Sends a command, and reads an answer that has `read` to say if it was done.
    fn command<T>(&mut self, words: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Answer<T>> {
        writeln!(self.input, "{words}").context("an endpoint takes no commands")?;
        let line = self.line()?;
        parse(&line, read).with_context(|| format!("`{words}` was answered with {line:?}"))
    }

    /// As [`Link::command`], for what can always be done.
    fn query<T>(&mut self, words: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        match self.command(words, read)? {
            Answer::Done(value) => Ok(value),
            Answer::Fault => bail!("`{words}` ended in a fault"),
            Answer::Refused(why) => bail!("`{words}` was refused: {why}"),
        }
    }

    /// What is switched on.
    pub fn state(&mut self, endpoint: &str) -> Result<Switches> {
        self.query(&format!("state {endpoint}"), |rest| {
            let on = |name| Some(field::<u32>(rest, name)? == 1);
            Some(Switches {
                master: on("master")?,
                pasid: on("pasid")?,
                ats: on("ats")?,
                pri: on("pri")?,
                outstanding: field(rest, "outstanding")?,
            })
        })
    }

    /// Reads up to 4096 bytes through the IOMMU.
    pub fn read(&mut self, endpoint: &str, tag: Tag, address: u64, size: usize) -> Result<Answer<Vec<u8>>> {
        self.command(&format!("read {endpoint} {tag} {address:#x} {size}"), data)
    }

    /// Writes up to 4096 bytes through the IOMMU.
    pub fn write(&mut self, endpoint: &str, tag: Tag, address: u64, bytes: &[u8]) -> Result<Answer<()>> {
        self.command(&format!("write {endpoint} {tag} {address:#x} {}", hex(bytes)), nothing)
    }

    /// Asks for the translation of a page; the endpoint keeps it.
    pub fn translate(
        &mut self,
        endpoint: &str,
        tag: Tag,
        address: u64,
        wanted: Wanted,
    ) -> Result<Answer<Translation>> {
        let access = if wanted == Wanted::Read { "r" } else { "rw" };
        self.command(&format!("translate {endpoint} {tag} {address:#x} {access}"), |rest| {
            Some(Translation {
                address: address_field(rest, "address")?,
                translated: address_field(rest, "translated")?,
                size: address_field(rest, "size")?,
                writable: word(rest, "access")?.contains('w'),
            })
        })
    }

    /// Writes up to 4096 bytes with a translation that the endpoint has kept.
    pub fn cached_write(
        &mut self,
        endpoint: &str,
        tag: Tag,
        address: u64,
        bytes: &[u8],
    ) -> Result<Answer<()>> {
        self.command(&format!("cached-write {endpoint} {tag} {address:#x} {}", hex(bytes)), nothing)
    }

    /// Takes the list of what the endpoint was told to forget.
    pub fn invalidations(&mut self, endpoint: &str) -> Result<Vec<Invalidation>> {
        self.query(&format!("invalidations {endpoint}"), |rest| {
            let read = |item: &str| {
                let (tag, range) = item.split_once(':')?;
                let (first, last) = range.split_once('-')?;
                Some(Invalidation { tag: tag.parse().ok()?, first: number(first)?, last: number(last)? })
            };
            rest.split_whitespace().map(read).collect()
        })
    }

    /// Issues a page request. [`Answer::Fault`] is one that the unit could not take.
    pub fn request_page(&mut self, endpoint: &str, request: PageRequest) -> Result<Answer<()>> {
        let PageRequest { tag, address, access, group, last } = request;
        let place = if last { "last" } else { "more" };
        self.command(&format!("page-request {endpoint} {tag} {address:#x} {access} {group} {place}"), nothing)
    }

    /// Requests `count` pages from `address` on for writing, at once, beyond what is allowed: group n for page n, up to
    /// 512. Gives how many the unit took.
    pub fn flood(&mut self, endpoint: &str, tag: Tag, address: u64, count: u16) -> Result<Answer<u16>> {
        self.command(&format!("flood {endpoint} {tag} {address:#x} {count}"), |rest| field(rest, "taken"))
    }

    /// Takes the list of responses; waits for the first up to `limit`.
    pub fn responses(&mut self, endpoint: &str, limit: Duration) -> Result<Vec<Response>> {
        let limit = limit.min(PATIENCE / 2).as_millis();
        self.query(&format!("responses {endpoint} {limit}"), |rest| {
            rest.split_whitespace().map(response).collect()
        })
    }

    /// Starts writing words at `address`, until [`Link::stop_writes`].
    pub fn start_writes(&mut self, endpoint: &str, tag: Tag, address: u64) -> Result<Answer<()>> {
        self.command(&format!("start-writes {endpoint} {tag} {address:#x}"), nothing)
    }

    /// Stops that.
    pub fn stop_writes(&mut self, endpoint: &str) -> Result<Writes> {
        self.query(&format!("stop-writes {endpoint}"), |rest| {
            Some(Writes {
                done: field(rest, "writes")?,
                faults: field(rest, "faults")?,
                refused: field(rest, "refused")?,
            })
        })
    }
}

fn parse<T>(line: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Answer<T>> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "ok" => read(rest).map(Answer::Done).ok_or_else(|| anyhow!("it cannot be read")),
        "fault" => Ok(Answer::Fault),
        "refused" => Ok(Answer::Refused(rest.to_owned())),
        _ => bail!("it is none"),
    }
}

fn nothing(rest: &str) -> Option<()> {
    rest.is_empty().then_some(())
}

/// The value of `name=value`.
fn word<'a>(rest: &'a str, name: &str) -> Option<&'a str> {
    rest.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn field<T: FromStr>(rest: &str, name: &str) -> Option<T> {
    word(rest, name)?.parse().ok()
}

fn address_field(rest: &str, name: &str) -> Option<u64> {
    number(word(rest, name)?)
}

/// A number as C's `%#x` prints it: 0 has no prefix.
fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

fn response(item: &str) -> Option<Response> {
    let mut parts = item.split(':');
    let (tag, group, code) = (parts.next()?, parts.next()?, parts.next()?);
    let code = match code {
        "success" => Code::Success,
        "invalid" => Code::Invalid,
        "failure" => Code::Failure,
        _ => return None,
    };
    Some(Response { tag: tag.parse().ok()?, group: group.parse().ok()?, code })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn data(rest: &str) -> Option<Vec<u8>> {
    let digits = word(rest, "data")?;
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("none"),
            Self::Pasid(pasid) => write!(f, "{pasid:#x}"),
        }
    }
}

impl FromStr for Tag {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        if text == "none" {
            return Ok(Self::Plain);
        }
        number(text).and_then(|pasid| u32::try_from(pasid).ok()).map(Self::Pasid).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link whose other end has said `lines` already.
    fn link(lines: &str) -> Link {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines.as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        // Kept open for the command.
        std::mem::forget(theirs);
        Link::new(ours).unwrap()
    }

    #[test]
    fn the_self_test_ends_with_a_verdict() {
        assert_eq!(link("test symbols ok\ntest e0 ok\nready\n").self_test().unwrap(), Start::Ready);
        let unusable = |lines| link(lines).self_test().unwrap();
        assert_eq!(unusable("unusable no x\n"), Start::Unusable("no x".to_owned()));
        assert_eq!(
            unusable("test e0 is bad\nunusable it fails\n"),
            Start::Unusable("it fails (e0 is bad)".to_owned())
        );
        assert!(link("test symbols ok\n").self_test().is_err());
        assert!(link("hello\n").self_test().is_err());
    }

    #[test]
    fn answers_are_told_apart() {
        let write = |answer| link(answer).write("e0", Tag::Pasid(5), 0x1000, &[0xa5, 1]);
        assert_eq!(write("ok\n").unwrap(), Answer::Done(()));
        assert_eq!(write("fault\n").unwrap(), Answer::Fault);
        assert_eq!(write("refused ATS is off\n").unwrap(), Answer::Refused("ATS is off".to_owned()));
        assert!(write("error bad arguments\n").is_err());
        assert!(write("ok but\n").is_err());
        assert!(write("ok").is_err());
    }

    #[test]
    fn values_are_read() {
        assert_eq!(
            link("ok data=a5ff\n").read("e0", Tag::Plain, 0, 2).unwrap(),
            Answer::Done(vec![0xa5, 0xff])
        );
        let answer = "ok address=0 translated=0x2fb000 size=0x1000 access=r\n";
        let expected = Translation { address: 0, translated: 0x2f_b000, size: 4096, writable: false };
        assert_eq!(
            link(answer).translate("e0", Tag::Pasid(1), 0, Wanted::Read).unwrap(),
            Answer::Done(expected)
        );
        assert_eq!(
            link("ok 0x5:0x1000-0x1fff none:0-0xffffffffffffffff\n").invalidations("e0").unwrap(),
            [
                Invalidation { tag: Tag::Pasid(5), first: 0x1000, last: 0x1fff },
                Invalidation { tag: Tag::Plain, first: 0, last: u64::MAX },
            ]
        );
        assert_eq!(
            link("ok 0x10:3:success 0x10:14:invalid\n").responses("e0", Duration::ZERO).unwrap(),
            [
                Response { tag: Tag::Pasid(0x10), group: 3, code: Code::Success },
                Response { tag: Tag::Pasid(0x10), group: 14, code: Code::Invalid },
            ]
        );
        assert_eq!(
            link("ok writes=9 faults=0 refused=1\n").stop_writes("e0").unwrap(),
            Writes { done: 9, faults: 0, refused: 1 }
        );
    }
}
