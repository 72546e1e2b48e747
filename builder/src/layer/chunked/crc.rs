//! CRC-64 as tar-split uses it (`hash/crc64` of Go with the ISO polynomial), eight bytes at a time.

/// The polynomial of ISO 3309, reflected.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

/// `TABLES[n][b]`: what the byte `b` comes to when `n` more bytes follow it.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut level = 1;
    while level < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[level - 1][byte];
            tables[level][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        level += 1;
    }
    tables
}

/// A checksum that is computed in parts.
#[derive(Clone, Copy, Debug)]
pub struct Crc(u64);

impl Default for Crc {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

impl Crc {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let bytes = (self.0 ^ u64::from_le_bytes(*word)).to_le_bytes();
            self.0 = bytes
                .iter()
                .zip(TABLES.iter().rev())
                .fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
        }
        for byte in rest {
            self.0 = self.0 >> 8 ^ TABLES[0][usize::from(self.0.to_le_bytes()[0] ^ byte)];
        }
    }

    /// The checksum of everything that was added.
    pub fn finish(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_catalogue_however_the_bytes_come() {
        let of = |parts: &[&[u8]]| {
            let mut crc = Crc::default();
            for part in parts {
                crc.update(part);
            }
            crc.finish()
        };
        // The check value of CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
        assert_eq!(of(&[b"123456789"]), 0xb909_56c7_75a4_1001);
        assert_eq!(of(&[]), 0);
        let bytes: Vec<u8> = (0..=255).cycle().take(1_000).collect();
        for cut in [0, 1, 7, 8, 9, 500, 999] {
            assert_eq!(of(&[&bytes[..cut], &bytes[cut..]]), of(&[&bytes]), "{cut}");
        }
    }
}
