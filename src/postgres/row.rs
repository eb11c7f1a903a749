//! One row of a result. Pure.

use std::str::FromStr;

use super::wire::Fields;
use crate::error::{Error, Result};

/// One row of a result, in text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    bytes: Box<[u8]>,
    /// Where each column lies in `bytes`; none for NULL.
    columns: Box<[Option<(u32, u32)>]>,
}

impl Row {
    /// Reads the body of a `DataRow` message.
    pub(super) fn parse(body: &[u8]) -> Result<Row> {
        let mut fields = Fields(body);
        let count = usize::try_from(fields.i16()?).unwrap_or(0);
        let mut columns = Vec::with_capacity(count);
        let mut at = 2_u32;
        for _ in 0..count {
            let length = fields.i32()?;
            at += 4;
            columns.push(match u32::try_from(length) {
                Ok(length) => {
                    fields.bytes(length as usize)?;
                    at += length;
                    Some((at - length, at))
                }
                Err(_) => None,
            });
        }
        Ok(Row {
            bytes: body.into(),
            columns: columns.into(),
        })
    }

    /// Column `i` (from 0) as it came; none for NULL or a column that is not there.
    #[must_use]
    pub fn bytes(&self, i: usize) -> Option<&[u8]> {
        let (start, end) = (*self.columns.get(i)?)?;
        self.bytes.get(start as usize..end as usize)
    }

    /// Column `i` as text.
    ///
    /// # Errors
    /// `Failed` for NULL and for text that is not UTF-8.
    pub fn str(&self, i: usize) -> Result<&str> {
        let bytes = self.bytes(i).ok_or_else(|| unexpected(i, "is NULL"))?;
        std::str::from_utf8(bytes).map_err(|_| unexpected(i, "is not UTF-8"))
    }

    /// Column `i` as text; none for NULL and for text that is not UTF-8.
    #[must_use]
    pub fn opt_str(&self, i: usize) -> Option<&str> {
        self.bytes(i)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// Column `i` parsed.
    ///
    /// # Errors
    /// `Failed` for NULL and for text that does not parse.
    pub fn get<T: FromStr>(&self, i: usize) -> Result<T> {
        let text = self.str(i)?;
        text.parse()
            .map_err(|_| unexpected(i, &format!("is {text:?}")))
    }

    /// Column `i` as a boolean (`t`, `f`).
    ///
    /// # Errors
    /// `Failed` for NULL and for anything else.
    pub fn bool(&self, i: usize) -> Result<bool> {
        match self.str(i)? {
            "t" | "on" | "true" => Ok(true),
            "f" | "off" | "false" => Ok(false),
            text => Err(unexpected(i, &format!("is {text:?}"))),
        }
    }

    /// The number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

fn unexpected(column: usize, what: &str) -> Error {
    Error::failed(format!(
        "the server's answer surprises: column {} {what}",
        column + 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_null_from_empty() {
        let body = [0, 3, 0, 0, 0, 2, b'4', b'2', 255, 255, 255, 255, 0, 0, 0, 0];
        let row = Row::parse(&body).unwrap();
        assert_eq!(row.len(), 3);
        assert_eq!(row.get::<u32>(0).unwrap(), 42);
        assert_eq!(row.bytes(1), None);
        assert_eq!(row.str(2).unwrap(), "");
        assert!(row.str(1).is_err() && row.bool(0).is_err() && row.bytes(9).is_none());
        assert!(Row::parse(&body[..9]).is_err());
    }
}
