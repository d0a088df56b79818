//! A file of lines that makes way for a new one when it is large, and in which every line is whole.
//!
//! It is looked for by its name before each line, so that one that was moved or removed is opened
//! anew, and that several processes may write the same file, as for a while when a proxy takes over
//! from another.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Nobody but the user that pgtenant runs as reads what tenants do.
const MODE: u32 = 0o600;
/// The start of a line that was left half written is looked for in so many bytes.
const LONGEST_LINE: u64 = 64 * 1024;

#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    open: Option<File>,
}

impl LogFile {
    pub fn new(path: &Path, max_size: u64, keep: u32) -> Self {
        Self {
            path: path.to_owned(),
            max_size,
            keep,
            open: None,
        }
    }

    /// Opens it, if it is not open.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn ensure_open(&mut self) -> io::Result<()> {
        self.file().map(|_| ())
    }

    /// Appends a line, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system. It can be tried again.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let (_, metadata) = self.file()?;
        let size = metadata.len();
        if metadata.is_file() && size > 0 && size + line.len() as u64 > self.max_size {
            self.rotate()?;
        }
        let (file, metadata) = self.file()?;
        let (written, result) = write(file, line);
        if result.is_err() && written > 0 {
            take_back(file, metadata.len(), written as u64);
        }
        result
    }

    /// The file of this name as it is now.
    fn file(&mut self) -> io::Result<(&mut File, Metadata)> {
        let same = |file: &File| {
            let (named, open) = (std::fs::metadata(&self.path).ok()?, file.metadata().ok()?);
            (named.dev() == open.dev() && named.ino() == open.ino()).then_some(open)
        };
        let known = self.open.take().and_then(|file| {
            let metadata = same(&file)?;
            Some((file, metadata))
        });
        let (file, metadata) = match known {
            Some(known) => known,
            None => {
                let file = open(&self.path)?;
                let metadata = file.metadata()?;
                (file, metadata)
            }
        };
        Ok((self.open.insert(file), metadata))
    }

    /// `file` becomes `file.1`, that one `file.2` and so on; the last is overwritten.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            match std::fs::rename(self.older(number), self.older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, self.older(1))
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)?;
    if file.metadata()?.is_file() {
        mend(&mut file)?;
    }
    Ok(file)
}

/// Takes away the half of a line that a process left which ended while it wrote. What has no lines
/// at all is somebody else's, and stays.
fn mend(file: &mut File) -> io::Result<()> {
    let size = file.metadata()?.len();
    let start = size.saturating_sub(LONGEST_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(LONGEST_LINE).read_to_end(&mut end)?;
    match memchr::memrchr(b'\n', &end) {
        _ if end.ends_with(b"\n") || end.is_empty() => Ok(()),
        Some(at) => file.set_len(start + at as u64 + 1),
        None if end.starts_with(b"{") && start == 0 => file.set_len(0),
        None => file.write_all(b"\n"),
    }
}

/// Writes what it can; returns how much that was.
fn write(file: &mut File, line: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < line.len() {
        match file.write(&line[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Takes back the first `written` bytes of a line, which began at `size`, unless another process
/// has written behind them.
fn take_back(file: &mut File, size: u64, written: u64) {
    let is_last = file
        .metadata()
        .is_ok_and(|now| now.is_file() && now.len() == size + written);
    if !is_last || file.set_len(size).is_err() {
        // A line of its own; on a full disk this fails, and the next process mends it.
        let _ = file.write_all(b"\n");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_else(|_| "-".to_owned())
    }

    #[test]
    fn a_file_that_is_large_makes_way_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut file = LogFile::new(&path, 10, 2);
        let older = |number: u32| dir.path().join(format!("audit.jsonl.{number}"));
        for (line, expected) in [
            ("aaaa\n", ["aaaa\n", "-", "-"]),
            ("bbbb\n", ["aaaa\nbbbb\n", "-", "-"]),
            ("cccc\n", ["cccc\n", "aaaa\nbbbb\n", "-"]),
            ("a long one\n", ["a long one\n", "cccc\n", "aaaa\nbbbb\n"]),
            ("dddd\n", ["dddd\n", "a long one\n", "cccc\n"]),
        ] {
            file.append(line.as_bytes()).unwrap();
            assert_eq!(
                [&path, &older(1), &older(2)].map(|path| read(path)),
                expected
            );
        }
        assert_eq!(read(&older(3)), "-");
        for path in [&path, &older(1)] {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
        }
    }

    #[test]
    fn a_file_that_was_moved_or_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("a"), dir.path().join("b"));
        let mut file = LogFile::new(&path, 1000, 2);
        file.append(b"1\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        file.append(b"2\n").unwrap();
        assert_eq!([read(&path), read(&moved)], ["2\n", "1\n"]);
        std::fs::remove_file(&path).unwrap();
        file.append(b"3\n").unwrap();
        assert_eq!(read(&path), "3\n");
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error_until_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let path = gone.join("a");
        std::fs::create_dir(&gone).unwrap();
        let mut file = LogFile::new(&path, 1000, 2);
        file.append(b"1\n").unwrap();
        std::fs::remove_dir_all(&gone).unwrap();
        for _ in 0..2 {
            let error = file.append(b"2\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
        std::fs::create_dir(&gone).unwrap();
        file.append(b"3\n").unwrap();
        assert_eq!(read(&path), "3\n");
    }

    #[test]
    fn a_full_disk_is_an_error_each_time() {
        let mut file = LogFile::new(Path::new("/dev/full"), 10, 2);
        for _ in 0..3 {
            let error = file.append(b"a line\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn half_a_line_never_stays_before_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (left, mended) in [
            ("", ""),
            ("{1}\n", "{1}\n"),
            ("{1}\n{2", "{1}\n"),
            ("{1", ""),
            ("something else", "something else\n"),
        ] {
            std::fs::write(&path, left).unwrap();
            LogFile::new(&path, 1000, 2).append(b"{3}\n").unwrap();
            assert_eq!(read(&path), format!("{mended}{{3}}\n"), "{left}");
        }
        // A disk that became full in the middle of a line.
        std::fs::write(&path, "{1}\n{2").unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        take_back(&mut file, 4, 2);
        assert_eq!(read(&path), "{1}\n");
        // And where another process was quicker.
        std::fs::write(&path, "{1}\n{2{3}\n").unwrap();
        take_back(&mut file, 4, 2);
        assert_eq!(read(&path), "{1}\n{2{3}\n\n");
    }
}
