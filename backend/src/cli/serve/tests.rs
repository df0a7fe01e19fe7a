use super::*;

fn check(path: PathBuf) -> Result<(), String> {
    run(&Args { config: path, check: true, stats: None })
}

#[test]
fn example_in_contrib_passes_its_check() {
    check(Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/mdevd.toml")).unwrap();
}

#[test]
fn file_that_is_not_there_or_wrong_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vms.toml");
    assert!(check(path.clone()).is_err());
    std::fs::write(&path, "[[net]]\nname = \"a\"\n").unwrap();
    assert!(check(path.clone()).unwrap_err().contains("1 errors"));
    std::fs::write(&path, "[[net]]\nname = \"a\"\nsocket-path = \"a.sock\"\n").unwrap();
    check(path).unwrap();
}
