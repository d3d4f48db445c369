//! What can be the key of a map: in JSON it is a text.

use bytes::{BufMut, BytesMut};
use serde::ser::{Error as _, Impossible, Serialize};
use serde_json::{Error, Result};

use super::escape::write_string;
use super::serializer::Serializer;

/// Appends one key: text, or what is written as text without loss.
pub(super) struct Key<'a>(pub(super) &'a mut BytesMut);

impl Key<'_> {
    fn quoted(self, write: impl FnOnce(Serializer<'_>) -> Result<()>) -> Result<()> {
        self.0.put_u8(b'"');
        write(Serializer::new(self.0))?;
        self.0.put_u8(b'"');
        Ok(())
    }
}

fn no_key<T>() -> Result<T> {
    Err(Error::custom("the key of a map must be a text, a number, a truth value or a name"))
}

macro_rules! quoted {
    ($($method:ident $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<()> {
            self.quoted(|serializer| serializer.$method(value))
        })*
    };
}

type Never = Impossible<(), Error>;

impl serde::Serializer for Key<'_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Never;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    quoted!(
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128,
        serialize_f32 f32, serialize_f64 f64, serialize_bool bool
    );

    fn serialize_char(self, value: char) -> Result<()> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<()> {
        write_string(value, self.0);
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<()> {
        no_key()
    }

    fn serialize_none(self) -> Result<()> {
        no_key()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<()> {
        no_key()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<()> {
        no_key()
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
        _: &'static str,
        _: &T,
    ) -> Result<()> {
        no_key()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Never> {
        no_key()
    }

    fn serialize_tuple(self, _: usize) -> Result<Never> {
        no_key()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Never> {
        no_key()
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Never> {
        no_key()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Never> {
        no_key()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Never> {
        no_key()
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Never> {
        no_key()
    }
}
