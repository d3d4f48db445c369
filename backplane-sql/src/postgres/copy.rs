//! Rows in the binary format of COPY (PostgreSQL documentation, COPY, "Binary Format").

use crate::store::{Row, WriterId};

/// Signature, no flags, no extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: i16 = -1;
/// writer, seq, key, topic, frames
const FIELDS: i16 = 5;
/// Bytes of a row besides its topic and its frames.
const FIXED: usize = 2 + 5 * 4 + 16 + 8 + 8;

/// All rows, as `COPY log (writer, seq, key, topic, frames) FROM STDIN WITH (FORMAT binary)` takes them.
pub(super) fn encode(writer: WriterId, rows: &[Row]) -> Vec<u8> {
    let size: usize = rows.iter().map(|row| FIXED + row.topic.as_bytes().len() + row.frames.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER.len() + size + 2);
    bytes.extend_from_slice(HEADER);
    for row in rows {
        bytes.extend_from_slice(&FIELDS.to_be_bytes());
        for field in
            [&writer.0[..], &row.seq.to_be_bytes(), &row.key.to_be_bytes(), row.topic.as_bytes(), &row.frames]
        {
            // The bus takes no frame or topic that is anywhere near this long.
            let length = i32::try_from(field.len()).expect("frames are shorter than 256 MiB");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(field);
        }
    }
    bytes.extend_from_slice(&TRAILER.to_be_bytes());
    bytes
}

#[cfg(test)]
mod units {
    use backplane_core::Topic;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn rows_are_laid_out_as_the_documentation_has_it() {
        let row = Row { seq: 1, topic: Topic::from("t"), key: -1, frames: Bytes::from_static(b"ab") };
        let bytes = encode(WriterId([7; 16]), &[row]);
        let mut expected = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x05\0\0\0\x10".to_vec();
        expected.extend([7; 16]);
        expected.extend(b"\0\0\0\x08\0\0\0\0\0\0\0\x01\0\0\0\x08\xff\xff\xff\xff\xff\xff\xff\xff");
        expected.extend(b"\0\0\0\x01t\0\0\0\x02ab\xff\xff");
        assert_eq!(bytes, expected);
        assert_eq!(bytes.len(), bytes.capacity());
    }
}
