//! A file as a sink: newline-delimited JSON, rotated by size.

use crate::frame::Frame;
use crate::sink::Sink;
use std::fs::{File, OpenOptions, canonicalize, rename};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

/// Newline-delimited JSON in a file that is rotated by size.
///
/// When an event would make it larger than `max_bytes`, the file is renamed with `.1` at its end, in place of an older one, and
/// a new one is begun. An event is never split. If a process ended, or a disk was full, in the middle of a line, that line
/// is ended before the next event, which has a line of its own.
#[derive(Debug)]
pub struct NdjsonFile {
    path: PathBuf,
    max_bytes: u64,
    file: BufWriter<File>,
    bytes: u64,
    /// Whether the last line may have no end.
    is_torn: bool,
}

impl NdjsonFile {
    /// Appends to the file, which is made if there is none.
    ///
    /// # Errors
    ///
    /// What the system has against that.
    pub fn open(path: impl AsRef<Path>, max_bytes: u64) -> io::Result<Self> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).read(true).open(path)?;
        // To be rotated where it is, though the process goes elsewhere, or a link is in between. A pipe has no place.
        let path = canonicalize(path).or_else(|_| absolute(path))?;
        let bytes = file.metadata()?.len();
        let mut last = [b'\n'];
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self {
            path,
            max_bytes,
            file: BufWriter::new(file),
            bytes,
            is_torn: last != *b"\n",
        })
    }

    /// Where it is: from the root on, and not by a link.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        match rename(&self.path, old) {
            // Somebody else has put it aside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        *self = Self::open(&self.path, self.max_bytes)?;
        Ok(())
    }

    fn write_line(&mut self, json: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.bytes += 1;
        }
        // Until it is whole.
        self.is_torn = true;
        self.file.write_all(json)?;
        self.file.write_all(b"\n")?;
        self.is_torn = false;
        self.bytes += json.len() as u64 + 1;
        Ok(())
    }
}

impl Sink for NdjsonFile {
    fn write(&mut self, frames: &[Arc<Frame>]) -> io::Result<()> {
        for frame in frames {
            let json = frame.json();
            if self.bytes > 0 && self.bytes + json.len() as u64 >= self.max_bytes {
                self.rotate()?;
            }
            self.write_line(json)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test may, and its helpers")]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::sink::tests::frames;
    use crate::sink::{Outlet, SinkStats};
    use std::fs;

    fn folder(name: &str) -> PathBuf {
        let name = format!("llm-callback-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// All that is offered is written, in order, by the time the outlet is closed.
    #[test]
    fn a_file_has_all_events() {
        let folder = folder("all");
        let path = folder.join("events.ndjson");
        let outlet =
            Outlet::start("file", NdjsonFile::open(&path, u64::MAX).unwrap(), 10_000).unwrap();
        let number = if cfg!(miri) { 20 } else { 1_000 };
        for frame in &frames(number) {
            outlet.offer(frame);
        }
        assert_eq!(
            outlet.close(),
            SinkStats {
                written: number,
                ..SinkStats::default()
            }
        );
        let text = fs::read_to_string(&path).unwrap();
        let sequences: Vec<_> = text
            .lines()
            .map(|line| Event::from_json(line.as_bytes()).unwrap().sequence)
            .collect();
        assert_eq!(sequences, (1..=number).collect::<Vec<_>>());
        fs::remove_dir_all(folder).unwrap();
    }

    /// A file that would grow too large is put aside whole, and a new one begun.
    #[test]
    fn a_file_is_rotated() {
        let folder = folder("rotated");
        let path = folder.join("events.ndjson");
        let frames = frames(5);
        let two = 2 * (frames[0].json().len() as u64 + 1);
        let mut sink = NdjsonFile::open(&path, two).unwrap();
        sink.write(&frames).unwrap();
        sink.flush().unwrap();
        let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(
            (lines(&path), lines(&folder.join("events.ndjson.1"))),
            (1, 2)
        );
        fs::remove_dir_all(folder).unwrap();
    }

    /// A file that somebody has taken away is begun anew, and a line that has no end is ended first.
    #[test]
    fn a_file_heals() {
        let folder = folder("heals");
        let path = folder.join("events.ndjson");
        let frames = frames(3);
        let two = 2 * (frames[0].json().len() as u64 + 1);
        let mut sink = NdjsonFile::open(&path, two).unwrap();
        sink.write(&frames[..2]).unwrap();
        sink.flush().unwrap();
        fs::remove_file(&path).unwrap();
        sink.write(&frames[2..]).unwrap();
        drop(sink);
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(whole.lines().count(), 1);

        fs::write(&path, &whole[..10]).unwrap();
        let mut sink = NdjsonFile::open(&path, u64::MAX).unwrap();
        sink.write(&frames[2..]).unwrap();
        drop(sink);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n{whole}", &whole[..10]));
        fs::remove_dir_all(folder).unwrap();
    }
}
