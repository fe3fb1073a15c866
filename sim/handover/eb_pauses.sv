// Random cycles, for benches: of 256 each bit of ``go`` is 0 in ``pauses`` of them, by itself; ``seed`` decides which.

module eb_pauses #(
    parameter CHANNELS = 1  // at most 4
) (
    input  wire                aclk,
    input  wire                aresetn,
    input  wire [7:0]          pauses,
    input  wire [31:0]         seed,
    output wire [CHANNELS-1:0] go
);
    reg [31:0] random_q;

    function [31:0] next_random(input [31:0] x);
        reg [31:0] y;
        begin
            y = x ^ (x << 13);
            y = y ^ (y >> 17);
            next_random = y ^ (y << 5);
        end
    endfunction

    genvar n;
    generate
        for (n = 0; n < CHANNELS; n = n + 1) begin : channel
            assign go[n] = random_q[8*n +: 8] >= pauses;
        end
    endgenerate

    always @(posedge aclk)
        random_q <= aresetn ? next_random(random_q) : seed | 32'd1;
endmodule
