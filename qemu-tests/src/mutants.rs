//! stub
use crate::workspace::Workspace;
/// stub
pub fn command(_: &Workspace, _: Option<&str>) -> anyhow::Result<bool> {
    Ok(true)
}
