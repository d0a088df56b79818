//! The quick start and the tutorial run as they are written: each block of `sh` in one shell, one
//! after the other, and a block of `text` behind one is what it prints.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pgtenant::cluster::{Cluster, Options, free_port};

use super::markdown::fenced;
use super::read;
use crate::harness::{binaries, cluster};

/// How long a document may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a block prints stands behind a line of this and its number.
const MARK: &str = "=== block ";

/// What stands in for the machine that a document speaks of. Nothing else of it is replaced.
struct Machine {
    dir: tempfile::TempDir,
    /// Each port of the document, and the one that it is here.
    ports: Vec<(&'static str, u16)>,
    path: String,
}

impl Machine {
    /// `sudo -u postgres` works as the superuser of `cluster`, and `make` has built already.
    fn new(cluster: &Cluster) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let python = std::env::var("PGTENANT_TEST_PYTHON");
        let python = python.expect("PGTENANT_TEST_PYTHON is not set: run `make test`");
        let sudo = format!(
            "[ \"$1 $2\" = '-u postgres' ] || exit 1\nshift 2\nexport PGHOST='{}' PGPORT={} PGUSER=postgres\nexec \"$@\"",
            cluster.socket_dir().display(),
            cluster.port()
        );
        for (name, text) in [
            ("sudo", &*sudo),
            (
                "make",
                "case \"$*\" in build|demo|test) ;; *) exit 1 ;; esac",
            ),
            ("python3", &format!("exec '{python}' \"$@\"")),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).expect("a mode");
        }
        let program = Path::new(env!("CARGO_BIN_EXE_pgtenant"));
        let program = program.parent().expect("a directory").to_owned();
        let before = [dir.path().to_owned(), program, binaries().dir().to_owned()];
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let paths: Vec<PathBuf> = before
            .into_iter()
            .chain(std::env::split_paths(&paths))
            .collect();
        let path = std::env::join_paths(paths).expect("a PATH");
        let ports = vec![
            ("5432", cluster.port()),
            ("6432", free_port().expect("a port")),
        ];
        Self {
            dir,
            ports,
            path: path.into_string().expect("UTF-8"),
        }
    }

    /// Runs the script; what it says on standard output and error, and whether it came to its end.
    fn run(&self, script: &str) -> (String, String, bool) {
        let mut script = script.to_owned();
        for (written, here) in &self.ports {
            script = script.replace(written, &here.to_string());
        }
        let work = self.dir.path().join("work");
        std::fs::create_dir_all(&work).expect("a directory");
        // Into files: what is left running in the background would keep a pipe open.
        let file = |name: &str| std::fs::File::create(self.dir.path().join(name)).expect("a file");
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .current_dir(&work)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .process_group(0)
            .spawn()
            .expect("bash");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait().expect("a status") {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                status => break status,
            }
        };
        let group = Pid::from_raw(child.id().try_into().expect("a process id"));
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
        let said = |name: &str| {
            let text = std::fs::read(self.dir.path().join(name)).expect("a file");
            String::from_utf8_lossy(&text).into_owned()
        };
        let is_whole = status.is_some_and(|status| status.success());
        (said("out"), said("err"), is_whole)
    }
}

/// The blocks of `sh` as one script, and what each that is followed by a block of `text` should
/// print.
fn script(text: &str) -> (String, Vec<(usize, String)>) {
    let mut script = "set -eu\n".to_owned();
    let mut expected = Vec::new();
    let mut number = 0;
    for fence in fenced(text) {
        match &*fence.info {
            "sh" => {
                number += 1;
                let _ = write!(script, "echo '{MARK}{number}'\n{}", fence.text);
            }
            "text" => expected.push((number, fence.text.trim().to_owned())),
            _ => (),
        }
    }
    (script, expected)
}

/// What went otherwise than the document says.
fn differences(text: &str, run: impl FnOnce(&str) -> (String, String, bool)) -> Vec<String> {
    let (script, expected) = script(text);
    assert!(!expected.is_empty(), "there is nothing to be compared");
    let (out, err, is_whole) = run(&script);
    let printed = |number: usize| {
        let mut blocks = out.split(MARK).filter_map(|block| block.split_once('\n'));
        let block = blocks.find(|(found, _)| *found == number.to_string());
        block.map(|(_, printed)| printed.trim().to_owned())
    };
    let mut wrong: Vec<String> = expected
        .into_iter()
        .filter(|(number, expected)| printed(*number).as_ref() != Some(expected))
        .map(|(number, expected)| {
            let printed = printed(number).unwrap_or_else(|| "nothing".to_owned());
            format!("block {number} printed:\n{printed}\nin the place of:\n{expected}")
        })
        .collect();
    if !is_whole {
        wrong.push(format!("it did not come to its end:\n{out}\n{err}"));
    }
    wrong
}

async fn play(document: &str) {
    let cluster = cluster(Options::named("document")).await;
    let machine = Machine::new(&cluster);
    let text = read(document);
    let wrong = tokio::task::block_in_place(|| differences(&text, |script| machine.run(script)));
    assert!(wrong.is_empty(), "{document}: {}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_runs_as_it_is_written() {
    play("README.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_runs_as_it_is_written() {
    play("docs/tutorial.md").await;
}

#[test]
fn a_document_that_does_something_else_is_found() {
    let bash = |script: &str| {
        let output = Command::new("bash")
            .args(["-c", script])
            .output()
            .expect("bash");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            said(&output.stdout),
            said(&output.stderr),
            output.status.success(),
        )
    };
    let good = "```sh\nx=1\n```\n```sh\necho $x\n```\n\n```text\n1\n```\n";
    assert_eq!(differences(good, bash), [""; 0]);
    let other = good.replace("text\n1", "text\n2");
    assert_eq!(differences(&other, bash).len(), 1);
    let fails = good.replace("x=1", "false");
    assert_eq!(differences(&fails, bash).len(), 2);
}
