//! The README keeps what it promises.

const README: &str = include_str!("../../README.md");
const EXAMPLE: &str = include_str!("../examples/embed.rs");

#[test]
fn the_readme_shows_the_example_that_is_compiled() {
    let shown = README.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let compiled = EXAMPLE.split("// --- README ---\n").nth(1).unwrap();
    assert_eq!(shown.trim(), compiled.trim());
}
