//! A copy of the workspace's sources, to be broken on purpose.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::list::Edit;
use crate::workspace::Workspace;

/// The copy, with a build directory of its own.
#[derive(Debug)]
pub struct Tree {
    workspace: Workspace,
}

/// Edited files; they get their old contents back when this goes.
#[derive(Debug)]
pub struct Patched {
    originals: Vec<(PathBuf, String)>,
}

impl Drop for Patched {
    fn drop(&mut self) {
        // In reverse, since a file may have been edited twice.
        for (path, text) in self.originals.iter().rev() {
            if let Err(error) = fs::write(path, text) {
                eprintln!("{} could not be restored: {error}", path.display());
            }
        }
    }
}

impl Tree {
    /// Brings the copy up to date with what git knows of the workspace, and new files that it does not ignore. Files
    /// that are the same stay untouched, so that cargo does not build them again.
    pub fn copy(workspace: &Workspace) -> Result<Self> {
        let base = workspace.target().join("mutants");
        let copy = Workspace::at(base.join("tree"), base.join("target"));
        let files = git_files(workspace)?;
        for file in &files {
            let bytes = match fs::read(workspace.root().join(file)) {
                Ok(bytes) => bytes,
                // Deleted and not yet committed, or a link to a directory.
                Err(_) => continue,
            };
            let path = copy.root().join(file);
            if fs::read(&path).is_ok_and(|old| old == bytes) {
                continue;
            }
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let keep: HashSet<PathBuf> = files
            .iter()
            .filter(|file| workspace.root().join(file).exists())
            .map(|file| copy.root().join(file))
            .collect();
        remove_others(copy.root(), &keep)?;
        Ok(Self { workspace: copy })
    }

    /// The copy as a workspace.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Makes the edits. All are looked at before the first is made.
    pub fn patch(&self, edits: &[Edit]) -> Result<Patched> {
        let mut patched = Patched { originals: Vec::new() };
        for edit in edits {
            let path = self.workspace.root().join(&edit.file);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", edit.file))?;
            let fresh = replace_once(&text, &edit.find, &edit.replace).with_context(|| edit.file.clone())?;
            patched.originals.push((path.clone(), text));
            fs::write(&path, fresh).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(patched)
    }
}

fn replace_once(text: &str, find: &str, replace: &str) -> Result<String> {
    match text.matches(find).count() {
        1 => Ok(text.replacen(find, replace, 1)),
        count => bail!("the text to replace occurs {count} times, not once"),
    }
}

fn git_files(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut command = workspace.tool("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdin(Stdio::null());
    let output = command.output().context("cannot start git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

/// Removes all files but these, and the directories that are empty then: cargo takes each of `drivers/` for a package.
fn remove_others(directory: &Path, keep: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(&path, keep)?;
            if fs::read_dir(&path)?.next().is_none() {
                fs::remove_dir(&path)?;
            }
        } else if !keep.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_that_occurs_once_is_replaced() {
        assert_eq!(replace_once("a b c", "b", "x").unwrap(), "a x c");
        assert!(replace_once("a b b", "b", "x").unwrap_err().to_string().contains("2 times"));
        assert!(replace_once("a", "b", "x").unwrap_err().to_string().contains("0 times"));
    }

    #[test]
    fn what_is_not_in_the_workspace_any_more_goes_with_its_directory() {
        let root = std::env::temp_dir().join(format!("portcullis-others-{}", std::process::id()));
        for file in ["kept/a", "kept/gone/b", "gone/deep/c"] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        remove_others(&root, &HashSet::from([root.join("kept/a")])).unwrap();
        assert!(
            root.join("kept/a").exists() && !root.join("kept/gone").exists() && !root.join("gone").exists()
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn patched_files_are_restored_also_when_a_later_edit_fails() {
        let root = std::env::temp_dir().join(format!("portcullis-tree-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("f"), "one two").unwrap();
        let tree = Tree { workspace: Workspace::at(root.clone(), root.clone()) };
        let edit = |find: &str| Edit { file: "f".to_owned(), find: find.to_owned(), replace: "x".to_owned() };
        let read = || fs::read_to_string(root.join("f")).unwrap();
        let patched = tree.patch(&[edit("one"), edit("two")]).unwrap();
        assert_eq!(read(), "x x");
        drop(patched);
        assert_eq!(read(), "one two");
        assert!(tree.patch(&[edit("one"), edit("three")]).is_err());
        assert_eq!(read(), "one two");
        fs::remove_dir_all(root).unwrap();
    }
}
