//! CRC-32C (Castagnoli), as in `backup_manifest`. Pure; eight bytes a step.

/// The reversed polynomial.
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLES: [[u32; 256]; 8] = tables();

// Indexes below 256 fit.
#[allow(clippy::cast_possible_truncation)]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// A running checksum.
#[derive(Debug, Clone, Copy)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Crc32c(u32::MAX)
    }
}

impl Crc32c {
    pub fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let [a, b, c, d] = crc.to_le_bytes();
            crc = TABLES[7][usize::from(chunk[0] ^ a)]
                ^ TABLES[6][usize::from(chunk[1] ^ b)]
                ^ TABLES[5][usize::from(chunk[2] ^ c)]
                ^ TABLES[4][usize::from(chunk[3] ^ d)]
                ^ TABLES[3][usize::from(chunk[4])]
                ^ TABLES[2][usize::from(chunk[5])]
                ^ TABLES[1][usize::from(chunk[6])]
                ^ TABLES[0][usize::from(chunk[7])];
        }
        for byte in chunks.remainder() {
            crc = crc >> 8 ^ TABLES[0][usize::from(*byte ^ crc.to_le_bytes()[0])];
        }
        self.0 = crc;
    }

    /// The checksum of what came so far.
    #[must_use]
    pub fn value(self) -> u32 {
        !self.0
    }

    /// As PostgreSQL writes it: the bytes as they lie in memory (little-endian), in hex.
    #[must_use]
    pub fn hex(self) -> String {
        hex::encode((!self.0).to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_standard_check_value_holds() {
        let mut crc = Crc32c::default();
        crc.update(b"123456789");
        assert_eq!(!crc.0, 0xE306_9283);
        assert_eq!(crc.hex(), "839206e3");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes in prop::collection::vec(any::<u8>(), 0..100), cut in 0_usize..100) {
            let cut = cut.min(bytes.len());
            let (mut whole, mut parts, mut slow) = (Crc32c::default(), Crc32c::default(), Crc32c::default());
            whole.update(&bytes);
            parts.update(&bytes[..cut]);
            parts.update(&bytes[cut..]);
            for byte in &bytes {
                slow.update(&[*byte]);
            }
            prop_assert_eq!(whole.0, parts.0);
            prop_assert_eq!(whole.0, slow.0);
        }
    }
}
