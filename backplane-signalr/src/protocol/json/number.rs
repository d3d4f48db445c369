//! How floats are written: the shortest digits that read back as the same value, laid out as .NET does it.

use std::io::Write;

use bytes::{BufMut, BytesMut};

/// Appends a finite float.
pub(super) fn write_f64(value: f64, output: &mut BytesMut) {
    // From 17 digits on, .NET's double changes to the notation with an exponent.
    write(format_args!("{value:e}"), 17, output);
}

/// Appends a finite float.
pub(super) fn write_f32(value: f32, output: &mut BytesMut) {
    write(format_args!("{value:e}"), 9, output);
}

/// Lays out what the standard library writes as `-1.25e-7`.
fn write(scientific: std::fmt::Arguments<'_>, widest: i32, output: &mut BytesMut) {
    let mut buffer = [0; 32];
    let mut free = &mut buffer[..];
    free.write_fmt(scientific).expect("the longest float takes 24 bytes");
    let unused = free.len();
    let text = std::str::from_utf8(&buffer[..buffer.len() - unused]).expect("floats are ASCII");
    let (mantissa, exponent) = text.split_once('e').expect("this notation has an exponent");
    let exponent: i32 = exponent.parse().expect("it is a small integer");
    let unsigned = mantissa.trim_start_matches('-');
    if unsigned.len() < mantissa.len() {
        output.put_u8(b'-');
    }
    let (first, rest) = unsigned.split_at(1);
    let rest = rest.trim_start_matches('.').as_bytes();
    let zeros = |count: i32, output: &mut BytesMut| output.put_bytes(b'0', count.try_into().unwrap_or(0));
    if !(-4..widest).contains(&exponent) {
        output.extend_from_slice(first.as_bytes());
        if !rest.is_empty() {
            output.put_u8(b'.');
            output.extend_from_slice(rest);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(output.writer(), "E{sign}{:02}", exponent.abs()).expect("memory takes all that is written");
    } else if exponent < 0 {
        output.extend_from_slice(b"0.");
        zeros(-exponent - 1, output);
        output.extend_from_slice(first.as_bytes());
        output.extend_from_slice(rest);
    } else {
        let places = usize::try_from(exponent).expect("it is not negative here");
        output.extend_from_slice(first.as_bytes());
        if let Some((whole, fraction)) = rest.split_at_checked(places).filter(|(_, tail)| !tail.is_empty()) {
            output.extend_from_slice(whole);
            output.put_u8(b'.');
            output.extend_from_slice(fraction);
        } else {
            output.extend_from_slice(rest);
            zeros(exponent - rest.len() as i32, output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: f64) -> String {
        let mut output = BytesMut::new();
        write_f64(value, &mut output);
        String::from_utf8(output.to_vec()).unwrap()
    }

    #[test]
    fn floats_are_laid_out_as_dotnet_does_it() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (100.25, "100.25"),
            (120.0, "120"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1E-05"),
            (-0.000_012_5, "-1.25E-05"),
            (1e15, "1000000000000000"),
            (1e16, "10000000000000000"),
            (1e17, "1E+17"),
            (1e21, "1E+21"),
            (1e300, "1E+300"),
            (123_456_789_012_345_680.0, "1.2345678901234568E+17"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (f64::MAX, "1.7976931348623157E+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014E-308"),
            (5e-324, "5E-324"),
        ] {
            assert_eq!(written(value), expected);
        }
    }

    #[test]
    fn single_floats_have_their_own_digits() {
        let written = |value: f32| {
            let mut output = BytesMut::new();
            write_f32(value, &mut output);
            String::from_utf8(output.to_vec()).unwrap()
        };
        assert_eq!(written(0.1), "0.1");
        assert_eq!(written(1e8), "100000000");
        assert_eq!(written(1e9), "1E+09");
        assert_eq!(written(f32::MAX), "3.4028235E+38");
    }

    proptest::proptest! {
        #[test]
        fn floats_read_back_as_they_were(bits: u64) {
            let value = f64::from_bits(bits);
            if value.is_finite() {
                proptest::prop_assert_eq!(written(value).parse::<f64>().unwrap().to_bits(), bits);
            }
        }
    }
}
