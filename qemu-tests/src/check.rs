//! stub
use crate::workspace::Workspace;
/// stub
pub fn command(_: &Workspace) -> anyhow::Result<bool> {
    Ok(true)
}
