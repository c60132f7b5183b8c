//! A file as a sink: newline-delimited JSON, rotated by size.

use super::{Batch, Refused, Sink};
use std::fs::{File, OpenOptions, canonicalize, rename};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf, absolute};

/// Newline-delimited JSON in a file that is rotated by size.
///
/// One system call writes a batch, with the ends of its lines, so that lines of another process come between two
/// batches, never inside a line. If an event would make the file larger than `max_bytes`, the file is renamed with `.1`
/// at its end, in place of an older one, and a new file is begun. If the renaming fails, the file goes on growing, and
/// the failure is the batch's error. If a process ended, or a disk was full, in the middle of a line, that line is
/// ended before the next event. A process that opens the file while another process writes a line may add an empty line
/// after that line. Readers must skip empty lines.
#[derive(Debug)]
pub struct NdjsonFile {
    path: PathBuf,
    max_bytes: u64,
    syncs: bool,
    file: File,
    bytes: u64,
    /// Whether the last line may have no end.
    is_torn: bool,
    /// The bytes of one write. Kept for its memory.
    buffer: Vec<u8>,
    /// Why the file could not be rotated, until the sink's caller is told.
    not_rotated: Option<io::Error>,
    /// The size at which a rotation is tried again after one that failed.
    retry_at: u64,
}

impl NdjsonFile {
    /// Appends to the file, which is made if it does not exist. The file is rotated at a size of `max_bytes`.
    ///
    /// # Errors
    ///
    /// The system's error, if the file cannot be opened for reading and appending.
    pub fn open(path: impl AsRef<Path>, max_bytes: u64) -> io::Result<Self> {
        let path = path.as_ref();
        let (file, bytes, is_torn) = open(path)?;
        // So that it is rotated where it is, even if the process changes its directory, or a link is in between. A pipe
        // has no real path.
        let path = canonicalize(path).or_else(|_| absolute(path))?;
        Ok(Self {
            path,
            max_bytes,
            syncs: false,
            file,
            bytes,
            is_torn,
            buffer: Vec::new(),
            not_rotated: None,
            retry_at: max_bytes,
        })
    }

    /// Makes every flush wait until the disk has the data (`fdatasync`), so that a power cut loses at most the events
    /// since the last flush.
    #[must_use]
    pub fn synced(mut self) -> Self {
        self.syncs = true;
        self
    }

    /// The file's absolute path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file and begins a new one. If the renaming fails, the file stays in use.
    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        self.sync()?;
        match rename(&self.path, &old) {
            // Another program has moved the file away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        // If this fails, the file is written on under its new name.
        (self.file, self.bytes, self.is_torn) = open(&self.path)?;
        self.retry_at = self.max_bytes;
        Ok(())
    }

    /// Writes the buffer. After an error `bytes` alone tells how much of it is in the file.
    fn write_buffer(&mut self) -> io::Result<()> {
        let mut rest = &self.buffer[..];
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.bytes += written as u64;
                    self.is_torn = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.syncs {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// Opens a file to append to it. Returns the file, its size, and whether its last line has no end.
fn open(path: &Path) -> io::Result<(File, u64, bool)> {
    let mut options = OpenOptions::new();
    let mut file = options.create(true).append(true).read(true).open(path)?;
    let bytes = file.metadata()?.len();
    let mut last = [b'\n'];
    if bytes > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, bytes, last != *b"\n"))
}

impl Sink for NdjsonFile {
    fn write(&mut self, batch: &Batch<'_>) -> Result<(), Refused> {
        let mut taken = 0;
        let mut frames = batch.frames().iter().peekable();
        while frames.peek().is_some() {
            self.buffer.clear();
            if self.is_torn {
                self.buffer.push(b'\n');
            }
            let mut ends = Vec::new();
            // As many as the file has room for, but one at least.
            while let Some(frame) = frames.peek() {
                let size = self.bytes + (self.buffer.len() + frame.json().len()) as u64;
                if size >= self.retry_at && self.bytes + self.buffer.len() as u64 > 0 {
                    break;
                }
                self.buffer.extend_from_slice(frame.json());
                self.buffer.push(b'\n');
                ends.push((self.bytes + self.buffer.len() as u64, frame.sequence()));
                frames.next();
            }
            if ends.is_empty() {
                if let Err(error) = self.rotate() {
                    self.not_rotated = Some(error);
                    // It is tried again when the file has grown by a tenth, and by one event at least.
                    let next = frames
                        .peek()
                        .map_or(0, |frame| frame.json().len() as u64 + 2);
                    self.retry_at = self.bytes + next.max(self.max_bytes / 10);
                }
                continue;
            }
            let written = self.write_buffer();
            // A large buffer must not keep its memory.
            self.buffer.shrink_to(1 << 20);
            let whole = ends.iter().take_while(|(end, _)| *end <= self.bytes);
            taken = whole.last().map_or(taken, |(_, sequence)| *sequence);
            if let Err(error) = written {
                return Err(Refused { taken, error });
            }
        }
        // The events themselves are written.
        let not_rotated = self.not_rotated.take();
        not_rotated.map_or(Ok(()), |error| Err(Refused { taken, error }))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync()
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test may, and its helpers")]
mod tests {
    use super::*;
    use crate::sink::Followed;
    use crate::wire::EventKind;
    use crate::wire::{EncodedBody, Frame, FrameEncoder};
    use std::fs;
    use std::sync::Arc;

    fn frames(number: u64) -> Vec<Arc<Frame>> {
        let mut encoder = FrameEncoder::new(&1.into());
        let body = EncodedBody::from_json(EventKind::LLM_STREAM, b"null", br#"{"content":"x"}"#);
        (1..=number)
            .map(|sequence| Arc::new(encoder.encode(0, sequence, &body)))
            .collect()
    }

    fn write(sink: &mut NdjsonFile, frames: &[Arc<Frame>]) -> Result<(), Refused> {
        let run = Followed {
            id: 1.into(),
            generation: 1,
        };
        sink.write(&Batch { run: &run, frames })
    }

    fn folder(name: &str) -> PathBuf {
        let name = format!("llm-callback-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A file that would grow too large is put aside whole, and a new one begun.
    #[test]
    fn a_file_is_rotated() {
        let folder = folder("rotated");
        let path = folder.join("events.ndjson");
        let frames = frames(5);
        let two = 2 * (frames[0].json().len() as u64 + 1);
        let mut sink = NdjsonFile::open(&path, two).unwrap();
        write(&mut sink, &frames).unwrap();
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
        write(&mut sink, &frames[..2]).unwrap();
        sink.flush().unwrap();
        fs::remove_file(&path).unwrap();
        write(&mut sink, &frames[2..]).unwrap();
        drop(sink);
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(whole.lines().count(), 1);

        fs::write(&path, &whole[..10]).unwrap();
        let mut sink = NdjsonFile::open(&path, u64::MAX).unwrap();
        write(&mut sink, &frames[2..]).unwrap();
        drop(sink);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n{whole}", &whole[..10]));
        fs::remove_dir_all(folder).unwrap();
    }

    /// A file that cannot be put aside goes on growing, with every event in it, and the failure is told.
    #[test]
    fn a_file_that_cannot_be_rotated_goes_on() {
        let folder = folder("stuck");
        let path = folder.join("events.ndjson");
        // A folder that is not empty is in the way.
        fs::create_dir_all(folder.join("events.ndjson.1").join("in the way")).unwrap();
        let frames = frames(5);
        let two = 2 * (frames[0].json().len() as u64 + 1);
        let mut sink = NdjsonFile::open(&path, two).unwrap();
        let told = write(&mut sink, &frames).unwrap_err();
        assert_eq!(told.taken, 5);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5);
        // Once nothing is in the way any more, it is rotated.
        fs::remove_dir_all(folder.join("events.ndjson.1")).unwrap();
        write(&mut sink, &frames).unwrap();
        assert!(fs::read_to_string(folder.join("events.ndjson.1")).is_ok());
        fs::remove_dir_all(folder).unwrap();
    }
}
