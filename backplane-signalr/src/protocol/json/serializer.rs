//! Writes values of any type that serde knows, in the shapes of `serde_json`, with the escapes and numbers of .NET.
//!
//! It stands beside `serde_json`'s own serializer, whose formatter could change escapes and numbers too, because that
//! one writes `null` for a float that JSON cannot express, and the formatter is not asked.

use std::io;

use bytes::{BufMut, BytesMut};
use serde::ser::{self, Error as _, Serialize};
use serde_json::{Error, Result};

use super::escape::write_string;
use super::key::Key;
use super::number::{write_f32, write_f64};
use super::scan;

/// Names of the structures by which `serde_json` hands its own raw values and numbers through a serializer begin so.
const PRIVATE: &str = "$serde_json::private::";

/// Appends one value to a buffer. When it fails, the buffer holds a part of it.
#[derive(Debug)]
pub(super) struct Serializer<'a> {
    output: &'a mut BytesMut,
}

impl<'a> Serializer<'a> {
    pub(super) fn new(output: &'a mut BytesMut) -> Self {
        Self { output }
    }

    fn begin(self, open: u8, end: &'static [u8]) -> Sequence<'a> {
        self.output.put_u8(open);
        Sequence { output: self.output, first: true, end, private: None }
    }

    /// `{"variant":`, to be closed by the sequence's end.
    fn begin_variant(self, variant: &str, open: u8, end: &'static [u8]) -> Sequence<'a> {
        self.output.put_u8(b'{');
        write_string(variant, self.output);
        self.output.put_u8(b':');
        self.begin(open, end)
    }

    fn integer(self, value: impl itoa::Integer) -> Result<()> {
        self.output.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        Ok(())
    }
}

fn not_finite() -> Error {
    Error::custom("a float that is infinite or not a number")
}

macro_rules! integers {
    ($($method:ident $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<()> {
            self.integer(value)
        })*
    };
}

impl<'a> ser::Serializer for Serializer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Sequence<'a>;
    type SerializeTuple = Sequence<'a>;
    type SerializeTupleStruct = Sequence<'a>;
    type SerializeTupleVariant = Sequence<'a>;
    type SerializeMap = Sequence<'a>;
    type SerializeStruct = Sequence<'a>;
    type SerializeStructVariant = Sequence<'a>;

    integers!(
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128
    );

    fn serialize_bool(self, value: bool) -> Result<()> {
        self.output.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<()> {
        if !value.is_finite() {
            return Err(not_finite());
        }
        write_f32(value, self.output);
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Result<()> {
        if !value.is_finite() {
            return Err(not_finite());
        }
        write_f64(value, self.output);
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<()> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<()> {
        write_string(value, self.output);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<()> {
        self.collect_seq(value)
    }

    fn serialize_none(self) -> Result<()> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<()> {
        self.output.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<()> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<()> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<()> {
        let mut map = self.begin(b'{', b"}");
        ser::SerializeStruct::serialize_field(&mut map, variant, value)?;
        ser::SerializeStruct::end(map)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Sequence<'a>> {
        Ok(self.begin(b'[', b"]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Sequence<'a>> {
        Ok(self.begin(b'[', b"]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Sequence<'a>> {
        Ok(self.begin(b'[', b"]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Sequence<'a>> {
        Ok(self.begin_variant(variant, b'[', b"]}"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Sequence<'a>> {
        Ok(self.begin(b'{', b"}"))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Sequence<'a>> {
        if name.starts_with(PRIVATE) {
            return Ok(Sequence { output: self.output, first: true, end: b"", private: Some(name) });
        }
        Ok(self.begin(b'{', b"}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Sequence<'a>> {
        Ok(self.begin_variant(variant, b'{', b"}}"))
    }
}

/// An array or an object that is being written.
#[derive(Debug)]
pub(super) struct Sequence<'a> {
    output: &'a mut BytesMut,
    first: bool,
    end: &'static [u8],
    /// A structure of `serde_json`'s own, which it writes itself.
    private: Option<&'static str>,
}

impl Sequence<'_> {
    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.output.put_u8(b',');
        }
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.separate();
        value.serialize(Serializer::new(self.output))
    }

    fn member<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<()> {
        if let Some(private) = self.private {
            let mut theirs = serde_json::Serializer::with_formatter(self.output.writer(), Normalized);
            let mut value_of_theirs = ser::Serializer::serialize_struct(&mut theirs, private, 1)?;
            ser::SerializeStruct::serialize_field(&mut value_of_theirs, name, value)?;
            return ser::SerializeStruct::end(value_of_theirs);
        }
        self.separate();
        write_string(name, self.output);
        self.output.put_u8(b':');
        value.serialize(Serializer::new(self.output))
    }

    fn finish(self) -> Result<()> {
        self.output.extend_from_slice(self.end);
        Ok(())
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),*) => {
        $(impl ser::$trait for Sequence<'_> {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
                self.element(value)
            }

            fn end(self) -> Result<()> {
                self.finish()
            }
        })*
    };
}

elements!(
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
);

macro_rules! members {
    ($($trait:ident),*) => {
        $(impl ser::$trait for Sequence<'_> {
            type Ok = ();
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<()> {
                self.member(name, value)
            }

            fn end(self) -> Result<()> {
                self.finish()
            }
        })*
    };
}

members!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Sequence<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        self.separate();
        key.serialize(Key(self.output))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.output.put_u8(b':');
        value.serialize(Serializer::new(self.output))
    }

    fn end(self) -> Result<()> {
        self.finish()
    }
}

/// Raw values lose their white space and get the escapes of all other output, as .NET's `JsonElement` does; numbers
/// keep their digits.
struct Normalized;

impl serde_json::ser::Formatter for Normalized {
    fn write_raw_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut output = BytesMut::with_capacity(fragment.len());
        let mut rest = fragment.as_bytes();
        while let Some(&byte) = rest.first() {
            let length = match byte {
                b' ' | b'\t' | b'\n' | b'\r' => 1,
                b'"' => {
                    let quoted = scan::Scanner::new(rest).value().map_err(invalid)?;
                    write_string(&scan::text(quoted).map_err(invalid)?, &mut output);
                    quoted.len()
                }
                _ => {
                    output.put_u8(byte);
                    1
                }
            };
            rest = &rest[length..];
        }
        writer.write_all(&output)
    }
}

fn invalid(broken: scan::Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, broken.to_string())
}
