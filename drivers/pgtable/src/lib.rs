//! Page tables for IOMMUs and CPUs: VMSAv8-64, x86-64 and VT-d second stage under one walker
#![no_std]
