//! Text that arrives in pieces: is it UTF-8 so far?

/// Checks text across the borders of its pieces, holding at most one unfinished character.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose end has not arrived, `len` bytes of it.
    partial: [u8; 4],
    len: u8,
}

impl Utf8 {
    /// Whether the text can still be UTF-8 after its next piece. After `false`, nothing more may be asked.
    #[must_use]
    pub(super) fn accepts(&mut self, mut piece: &[u8]) -> bool {
        while self.len > 0 {
            let Some((&next, rest)) = piece.split_first() else { return true };
            piece = rest;
            self.partial[usize::from(self.len)] = next;
            self.len += 1;
            match std::str::from_utf8(&self.partial[..usize::from(self.len)]) {
                Ok(_) => self.len = 0,
                // A sound beginning is at most three bytes long, so there is room for the next.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_none() => {
                let tail = &piece[error.valid_up_to()..];
                self.partial[..tail.len()].copy_from_slice(tail);
                self.len = u8::try_from(tail.len()).expect("an unfinished character has at most three bytes");
                true
            }
            Err(_) => false,
        }
    }

    /// Whether no character is unfinished.
    #[must_use]
    pub(super) fn is_complete(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the standard library says of the whole.
    fn whole(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok()
    }

    fn in_pieces(bytes: &[u8], size: usize) -> bool {
        let mut utf8 = Utf8::default();
        bytes.chunks(size).all(|piece| utf8.accepts(piece)) && utf8.is_complete()
    }

    #[test]
    fn characters_may_be_cut_anywhere() {
        let text = "aé€𝄞z\u{10FFFF}".as_bytes();
        for size in 1..=text.len() {
            assert!(in_pieces(text, size), "in pieces of {size}");
        }
    }

    #[test]
    fn the_first_byte_that_cannot_be_is_noticed() {
        // A surrogate, an overlong form, beyond U+10FFFF, a stray continuation, a byte that is never used.
        for wrong in [&b"\xED\xA0"[..], b"\xC0", b"\xE0\x80", b"\xF4\x90", b"\x80", b"\xFF"] {
            let mut utf8 = Utf8::default();
            let (last, before) = wrong.split_last().unwrap();
            assert!(utf8.accepts(before), "{wrong:?} may still become a character");
            assert!(!utf8.accepts(&[*last]), "{wrong:?} cannot");
        }
    }

    #[test]
    fn text_that_ends_inside_a_character_is_not_complete() {
        let mut utf8 = Utf8::default();
        assert!(utf8.accepts(b"ab\xE2\x82"));
        assert!(!utf8.is_complete());
        assert!(utf8.accepts(b""));
        assert!(!utf8.is_complete());
        assert!(utf8.accepts(b"\xAC"));
        assert!(utf8.is_complete());
    }

    proptest! {
        #[test]
        fn pieces_are_judged_like_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..24), size in 1usize..8) {
            prop_assert_eq!(in_pieces(&bytes, size), whole(&bytes));
        }

        #[test]
        fn text_is_always_accepted(text in ".{0,24}", size in 1usize..8) {
            prop_assert!(in_pieces(text.as_bytes(), size));
        }
    }
}
