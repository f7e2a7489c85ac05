//! What random operations did, and how often, for people to read.

use std::fmt::Display;
use std::fs;
use std::path::Path;

/// Prints the counts, and leaves them in a file of its own: `NAME.txt` in `folder`, which a test takes from
/// `CARGO_TARGET_TMPDIR`.
///
/// # Panics
///
/// The file cannot be written.
pub fn report(folder: &str, name: &str, lines: impl IntoIterator<Item = impl Display>) {
    let mut text = String::new();
    for line in lines {
        text.push_str(&format!("{line}\n"));
    }
    print!("{text}");
    let folder = Path::new(folder).join("coverage");
    let written =
        fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(format!("{name}.txt")), text));
    assert!(written.is_ok(), "{}: {written:?}", folder.display());
}
