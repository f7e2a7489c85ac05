//! The disk that the kernel reads and writes: always the same bytes, a fresh copy for each run.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::workspace::Workspace;

/// Bytes in the image.
const SIZE: u64 = 64 << 20;
const SECTOR: u64 = 512;

/// The image that runs copy.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    sha256: String,
}

impl Image {
    /// The image, made if it is not there.
    pub fn ensure(workspace: &Workspace) -> Result<Self> {
        static LOCK: Mutex<()> = Mutex::new(());
        let _guard = LOCK.lock();
        let dir = workspace.target().join("run");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        remove_left_behind(&dir);
        let path = dir.join("disk.img");
        if fs::metadata(&path).map_or(0, |metadata| metadata.len()) != SIZE {
            // Written beside its place and moved there, so that what is there is whole.
            let fresh = dir.join(format!("disk.img.{}", std::process::id()));
            write_image(&fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
            fs::rename(&fresh, &path)?;
        }
        let sha256 = hash_of(File::open(&path)?)?;
        Ok(Self { path, sha256 })
    }

    /// The hash of the whole image, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// A copy for one run, which goes with the value.
    pub fn copy(&self, name: &str) -> Result<DiskCopy> {
        let path = self.path.with_file_name(format!("{name}-{}.img", std::process::id()));
        fs::copy(&self.path, &path).with_context(|| format!("cannot copy the disk to {}", path.display()))?;
        Ok(DiskCopy { path })
    }
}

/// Removes the copies of harnesses that were killed: `NAME-PID.img` without a process of that number.
fn remove_left_behind(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or("");
        let pid = name.rsplit_once('-').and_then(|(_, pid)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// A run's own disk.
#[derive(Debug)]
pub struct DiskCopy {
    path: PathBuf,
}

impl DiskCopy {
    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DiskCopy {
    fn drop(&mut self) {
        // A file that is left behind does no harm: the next copy has a name of its own.
        let _ = fs::remove_file(&self.path);
    }
}

/// Pseudo-random words (splitmix64): no two sectors alike, the same on every machine.
fn write_image(path: &Path) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = 0x706f_7274_6375_6c6c_u64;
    for _ in 0..SIZE / 8 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        file.write_all(&(word ^ (word >> 31)).to_le_bytes())?;
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}

fn hash_of(mut input: impl Read) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A region that the kernel says it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    sector: u64,
    count: u64,
    sha256: String,
}

impl Written {
    /// Parses `sector=N count=N sha256=HEX`, in any order.
    pub fn parse(text: &str) -> Option<Self> {
        let field =
            |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let written = Self {
            sector: field("sector")?.parse().ok()?,
            count: field("count")?.parse().ok()?,
            sha256: field("sha256")?.to_ascii_lowercase(),
        };
        (written.count > 0 && written.sha256.len() == 64).then_some(written)
    }

    /// Whether the file holds what was written: a sentence for either case.
    pub fn check(&self, disk: &Path, original: &Image) -> std::result::Result<String, String> {
        let region = |path: &Path| -> Result<String> {
            let mut file = File::open(path)?;
            let offset = self.sector.checked_mul(SECTOR).context("the sector is out of range")?;
            let length = self.count.checked_mul(SECTOR).context("the count is out of range")?;
            if offset.checked_add(length).is_none_or(|end| end > SIZE) {
                anyhow::bail!("the region is not on the disk");
            }
            file.seek(SeekFrom::Start(offset))?;
            hash_of(file.take(length))
        };
        let place = format!("{} sectors at {}", self.count, self.sector);
        let found = region(disk).map_err(|error| format!("{place}: {error:#}"))?;
        let before = region(&original.path).map_err(|error| format!("{place}: {error:#}"))?;
        if found == before {
            // Otherwise a kernel that writes back what it read would prove nothing.
            return Err(format!("{place} are what they were before"));
        }
        if found != self.sha256 {
            return Err(format!("{place} have the hash {found}, the kernel wrote {}", self.sha256));
        }
        Ok(format!("{place} are in the image as written"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_records_are_parsed_strictly() {
        let hash = "ab".repeat(32);
        let record = Written::parse(&format!("count=64 sector=2048 sha256={hash}")).unwrap();
        assert_eq!((record.sector, record.count), (2048, 64));
        for bad in ["", "sector=1 count=2", "sector=1 count=0 sha256=00", "sector=x count=1 sha256=00"] {
            assert_eq!(Written::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_write_counts_only_if_the_image_changed_to_what_was_written() {
        let dir = std::env::temp_dir().join(format!("portcullis-disk-{}", std::process::id()));
        let image = Image::ensure(&Workspace::at(dir.clone(), dir.clone())).unwrap();
        let copy = image.copy("test").unwrap();
        let hash = hash_of(&[7u8; 1024][..]).unwrap();
        let record = Written::parse(&format!("sector=4 count=2 sha256={hash}")).unwrap();
        assert!(record.check(copy.path(), &image).unwrap_err().contains("before"));
        let mut file = File::options().write(true).open(copy.path()).unwrap();
        file.seek(SeekFrom::Start(4 * 512)).unwrap();
        file.write_all(&[7; 1024]).unwrap();
        assert!(record.check(copy.path(), &image).is_ok());
        file.seek(SeekFrom::Start(4 * 512)).unwrap();
        file.write_all(&[8; 1]).unwrap();
        assert!(record.check(copy.path(), &image).unwrap_err().contains("hash"));
        let outside = Written::parse(&format!("sector=131072 count=1 sha256={hash}")).unwrap();
        assert!(outside.check(copy.path(), &image).is_err());
        drop(copy);
        fs::remove_dir_all(dir).unwrap();
    }
}
