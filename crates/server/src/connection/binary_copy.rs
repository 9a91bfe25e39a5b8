//! Rows of a `COPY … TO STDOUT (FORMAT binary)`, pulled field by field.
//!
//! The format is a stream: where its messages begin and end means nothing, so a field may be spread over several and is
//! copied once, to where it is wanted. Source: "Binary Format" of the COPY command's documentation.

use super::{Connection, CopyMessage, ServerError};

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// No field of ours is longer; a longer one is a stream that was misread.
const FIELD_MAX: u32 = 64 << 20;

/// Where the messages of a COPY come from.
pub trait Messages {
    /// One message.
    type Message: AsRef<[u8]>;

    /// The next one; `None` after the last of a COPY that ended well.
    fn next_message(&self) -> Result<Option<Self::Message>, ServerError>;
}

impl Messages for Connection {
    type Message = CopyMessage;

    fn next_message(&self) -> Result<Option<CopyMessage>, ServerError> {
        self.next_copy_message()
    }
}

/// The place in such a stream. Every call takes the source of the messages, which must be the same each time.
#[derive(Debug)]
pub struct BinaryCopy<M> {
    message: Option<M>,
    /// How much of the message was taken.
    taken: usize,
    has_header: bool,
}

impl<M: AsRef<[u8]>> BinaryCopy<M> {
    /// The place before the first byte.
    pub fn new() -> Self {
        Self { message: None, taken: 0, has_header: false }
    }

    /// Goes to the next row, whose fields must all be taken before the next call; `None` when the COPY has ended, and
    /// ended well. An error unless the row has `columns` fields.
    pub fn next_row<S>(&mut self, source: &S, columns: u16) -> Result<Option<()>, ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        if !self.has_header {
            self.header(source)?;
        }
        let found = i16::from_be_bytes(self.array(source)?);
        if found == -1 {
            return self.end(source).map(|()| None);
        }
        if found.cast_unsigned() != columns {
            return Err(odd(&format!("{found} fields in a row of a COPY instead of {columns}")));
        }
        Ok(Some(()))
    }

    /// The length of the next field, whose bytes must then be taken; `None` for `NULL`.
    pub fn field<S>(&mut self, source: &S) -> Result<Option<usize>, ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        match u32::from_be_bytes(self.array(source)?) {
            u32::MAX => Ok(None),
            length if length <= FIELD_MAX => Ok(Some(length as usize)),
            length => Err(odd(&format!("a field of {length} bytes in a COPY"))),
        }
    }

    /// Takes the next bytes of a field.
    pub fn take<S>(&mut self, source: &S, mut into: &mut [u8]) -> Result<(), ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        while !into.is_empty() {
            let there = self.rest(source)?;
            let length = there.len().min(into.len());
            into[..length].copy_from_slice(&there[..length]);
            self.taken += length;
            into = &mut into[length..];
        }
        Ok(())
    }

    /// Passes over the next bytes of a field.
    pub fn skip<S>(&mut self, source: &S, mut length: usize) -> Result<(), ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        while length > 0 {
            let step = self.rest(source)?.len().min(length);
            self.taken += step;
            length -= step;
        }
        Ok(())
    }

    /// The whole of the next field; `None` for `NULL`.
    pub fn bytes<S>(&mut self, source: &S) -> Result<Option<Vec<u8>>, ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        let Some(length) = self.field(source)? else { return Ok(None) };
        let mut bytes = vec![0; length];
        self.take(source, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The next field, of a fixed length such as that of an integer; `None` for `NULL`.
    pub fn fixed<S, const N: usize>(&mut self, source: &S) -> Result<Option<[u8; N]>, ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        match self.field(source)? {
            None => Ok(None),
            Some(length) if length == N => self.array(source).map(Some),
            Some(length) => Err(odd(&format!("a field of {length} bytes in a COPY instead of {N}"))),
        }
    }

    /// Makes sure that nothing follows, and that the COPY ended well.
    fn end<S: Messages<Message = M> + ?Sized>(&mut self, source: &S) -> Result<(), ServerError> {
        loop {
            if self.message.take().is_some_and(|message| message.as_ref().len() > self.taken) {
                return Err(odd("data after the end of a COPY"));
            }
            self.taken = 0;
            self.message = source.next_message()?;
            if self.message.is_none() {
                return Ok(());
            }
        }
    }

    fn header<S: Messages<Message = M> + ?Sized>(&mut self, source: &S) -> Result<(), ServerError> {
        if self.array(source)? != *SIGNATURE {
            return Err(odd("no binary COPY"));
        }
        let _flags: [u8; 4] = self.array(source)?;
        let extension = u32::from_be_bytes(self.array(source)?);
        self.skip(source, extension as usize)?;
        self.has_header = true;
        Ok(())
    }

    fn array<S, const N: usize>(&mut self, source: &S) -> Result<[u8; N], ServerError>
    where
        S: Messages<Message = M> + ?Sized,
    {
        let mut bytes = [0; N];
        self.take(source, &mut bytes)?;
        Ok(bytes)
    }

    /// What is left of the current message, or the next one that is not empty.
    fn rest<S: Messages<Message = M> + ?Sized>(&mut self, source: &S) -> Result<&[u8], ServerError> {
        while self.message.as_ref().is_none_or(|message| message.as_ref().len() == self.taken) {
            // Freed before the next is made, so that there is never more than one.
            self.message = None;
            self.taken = 0;
            let next = source.next_message()?;
            self.message = Some(next.ok_or_else(|| odd("a COPY that ended within a row"))?);
        }
        Ok(self.message.as_ref().map(|message| &message.as_ref()[self.taken..]).unwrap_or_default())
    }
}

impl<M: AsRef<[u8]>> Default for BinaryCopy<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn odd(what: &str) -> ServerError {
    ServerError::UnexpectedAnswer { what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    struct Fake(RefCell<VecDeque<Vec<u8>>>);

    impl Fake {
        fn new(stream: &[u8], cuts: &[usize]) -> Self {
            let mut messages = VecDeque::new();
            let mut rest = stream;
            for cut in cuts {
                let (message, after) = rest.split_at((*cut).min(rest.len()));
                messages.push_back(message.to_vec());
                rest = after;
            }
            messages.push_back(rest.to_vec());
            Self(RefCell::new(messages))
        }
    }

    impl Messages for Fake {
        type Message = Vec<u8>;

        fn next_message(&self) -> Result<Option<Vec<u8>>, ServerError> {
            Ok(self.0.borrow_mut().pop_front())
        }
    }

    fn encode(rows: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut stream = [&SIGNATURE[..], &[0; 4], &[0, 0, 0, 2, 7, 7]].concat();
        for row in rows {
            stream.extend([0, 1]);
            match row {
                None => stream.extend([255; 4]),
                Some(bytes) => {
                    stream.extend((bytes.len() as u32).to_be_bytes());
                    stream.extend(bytes);
                }
            }
        }
        stream.extend([255, 255]);
        stream
    }

    fn decode(source: &Fake) -> Result<Vec<Option<Vec<u8>>>, ServerError> {
        let (mut copy, mut rows) = (BinaryCopy::new(), Vec::new());
        while copy.next_row(source, 1)?.is_some() {
            rows.push(copy.bytes(source)?);
        }
        Ok(rows)
    }

    proptest! {
        #[test]
        fn rows_come_out_however_the_messages_are_cut(
            rows in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            cuts in prop::collection::vec(0usize..30, 0..40),
        ) {
            prop_assert_eq!(decode(&Fake::new(&encode(&rows), &cuts)).unwrap(), rows);
        }

        #[test]
        fn any_stream_is_rows_or_an_error(mut stream: Vec<u8>, valid in any::<bool>(), cuts in prop::collection::vec(0usize..30, 0..9)) {
            if valid {
                stream = [&SIGNATURE[..], &[0; 8], &stream].concat();
            }
            let _ = decode(&Fake::new(&stream, &cuts));
        }

        #[test]
        fn a_stream_that_ends_early_is_an_error(length in 0usize..60) {
            let stream = encode(&[Some(b"abc".to_vec()), None, Some(vec![1; 30])]);
            prop_assume!(length < stream.len());
            prop_assert!(decode(&Fake::new(&stream[..length], &[])).is_err());
        }
    }
}
