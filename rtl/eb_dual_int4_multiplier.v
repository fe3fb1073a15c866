// Two products with one multiplier: an int8 number times the int4 weights of two rows; Verilog-2005.
//
// p_0 and p_1 show x * w_0 and x * w_1 of the operands before the last rising edge of clk: all 2**16 of them,
// -128 and -8 included, exactly. No reset. One multiplier of 17 x 8 bits and its register are an ECP5's
// MULT18X18D, or a DSP48E1.
//
// A flow for a device may put a module of its own of this name and these ports in this file's place; nothing
// but the ports and the one cycle is relied on.
//
//   weights          w_1 * 2**12 + w_0, 17 bits: the sign of w_0 fills the places between, and takes 1 from w_1
//   weights * x      x * w_1 * 2**12 + x * w_0: the lower 12 bits are x * w_0 with its sign. Where that is
//                    below 0, it has borrowed 1 from the upper ones, which get it back behind the register

module eb_dual_int4_multiplier (
    input  wire               clk,
    input  wire signed [7:0]  x,
    input  wire signed [3:0]  w_0,
    input  wire signed [3:0]  w_1,
    output wire signed [11:0] p_0,
    output wire signed [11:0] p_1
);
    wire        [4:0]  upper = {w_1[3], w_1} - {4'd0, w_0[3]};
    wire signed [16:0] weights = {upper, {8{w_0[3]}}, w_0};
    reg  signed [23:0] product_q;

    always @(posedge clk)
        product_q <= weights * x;

    assign p_0 = product_q[11:0];
    assign p_1 = product_q[23:12] + {11'd0, product_q[11]};
endmodule
